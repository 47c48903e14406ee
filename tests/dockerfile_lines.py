"""The Dockerfile as a bash script, for a system where no container can be built.

    python -m tests.fresh_root --user root --command 'python3 tests/dockerfile_lines.py >lines.sh && bash lines.sh'

A fresh Debian root stands in for the base image: Debian's Python instead of the image's own.
Its instructions become lines of the script in their order; the command of CMD stands at the end.
Needs the standard library only, as a fresh root has nothing else.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INDEX = '--index-url "$TORCH_INDEX" '

# First what python:3.11-slim has and Debian's python3 has not.
# The context is the commit, which has nothing of what .dockerignore names.
START = r"""
set -euo pipefail
apt-get -qq update && apt-get -qq install -y --no-install-recommends python-is-python3 python3-dev >/dev/null
context=$PWD folder=/ user=0 shell=(/bin/sh -c)
run() {
    local as=() home=/root
    if [ "$user" != 0 ]; then
        as=(setpriv --reuid="$user" --regid="$user" --init-groups)
        home=$(getent passwd "$user" | cut -d: -f6)
    fi
    (cd "$folder" && HOME=$home "${as[@]}" "${shell[@]}" "$1" </dev/null)
}
copy() {
    (cd "$folder" && mkdir -p "$3" && git -C "$context" archive HEAD -- "$2" | tar -x -C "$3" && chown -R "$1" "$3")
}
"""
END = (
    'ln -s "$(dirname "$(dirname "$(command -v moco-pretrain)")")" "$context/.venv"  # where the versions are looked up'
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
    parser.add_argument(
        "--own-index", action="store_true", help="torch from the index that pip is set to, not PyTorch's"
    )
    o = parser.parse_args()
    text = (ROOT / "Dockerfile").read_text()
    given = dict(argument.partition("=")[::2] for argument in o.build_arg)
    print("\n".join([START, *script(text.replace(INDEX, "") if o.own_index else text, given), END]))
    return 0


def script(text: str, given: dict[str, str]) -> Iterator[str]:
    """The lines of bash for a Dockerfile; `given` replaces the values of its build arguments.

    Raises ValueError for an instruction that is not translated.
    """
    for word, rest in instructions(text):
        if word == "RUN":
            yield f"run {shlex.quote(rest)}"
        elif word == "ARG":
            name, _, value = rest.partition("=")
            yield f"export {name}={shlex.quote(given.get(name, value))}"
        elif word == "ENV":
            yield "export " + " ".join(re.sub(r"^(\w+)=(.*)$", r'\1="\2"', pair) for pair in rest.split())
        elif word == "SHELL":
            yield f"shell=({shlex.join(json.loads(rest))})"
        elif word == "USER":
            yield f"user={rest}"
        elif word == "WORKDIR":
            yield f'folder={rest} && mkdir -p "$folder"'
        elif word == "COPY":
            owner, source, target = re.fullmatch(r"--chown=(\w+) (\S+) (\S+)", rest).groups()  # type: ignore[union-attr]
            yield f"copy {owner} {source} {target}"
        elif word == "CMD":
            yield f"run {shlex.quote(shlex.join(json.loads(rest)))}"
        elif word != "FROM":
            raise ValueError(f"{word} of the Dockerfile is not translated")


def instructions(text: str) -> list[tuple[str, str]]:
    """Pairs of an instruction's word and the rest, lines joined; without comments."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines()) if word]


if __name__ == "__main__":
    sys.exit(main())
