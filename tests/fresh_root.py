"""The README's commands on a system without anything: a table of docs/installation.md.

    python -m tests.fresh_root --suite bookworm --user root --user student
    python -m tests.fresh_root --suite noble --mirror http://archive.ubuntu.com/ubuntu --components main,universe

Needs root and debootstrap, and for Ubuntu its keyring (package ubuntu-keyring).
For each user a clone of this repository's HEAD is put into a fresh Debian or Ubuntu root.
That root has Python, make, git and nothing else. The command runs there; the ordinary user has no sudo.
Each result is added to benchmarks/results/fresh_roots.json, and the table is written anew.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results_page import ROOT, plain_table, put, replaced
from moco.commands import run_command
from moco.errors import InputError
from moco.run.files import write_json

RESULTS = ROOT / "benchmarks" / "results" / "fresh_roots.json"
PAGE = ROOT / "docs" / "installation.md"
COLUMNS = ("system", "python", "torch", "user", "command", "ffcv", "result", "minutes", "commit")
PACKAGES = "python3,python3-venv,make,git,ca-certificates"
SCRIPTS = Path("/usr/share/debootstrap/scripts")
KEPT_LINES = 3  # of a failing command's output


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", default="bookworm", help="the release, as debootstrap names it (%(default)s)")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian", help="%(default)s")
    parser.add_argument(
        "--components", default="main", help="parts of the archive (%(default)s); Ubuntu needs universe too"
    )
    parser.add_argument("--user", action="append", help="root or the name of an ordinary user; may be repeated")
    parser.add_argument("--command", default="make quickstart", help="%(default)s")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp/fresh-root"), help="emptied first (%(default)s)")
    parser.add_argument("--share", action="append", default=[], help="a path of this machine, as pip's own settings")
    o = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        raise InputError("a fresh root is made by root with debootstrap: apt-get install debootstrap")
    if ROOT in o.folder.resolve().parents or o.folder.resolve() == ROOT:
        raise InputError(f"--folder {o.folder} lies in the repository, and would be emptied")
    base = o.folder / "base"
    shutil.rmtree(o.folder, ignore_errors=True)
    base.mkdir(parents=True)
    chosen = ["--variant=minbase", f"--components={o.components}", f"--include={PACKAGES}"]
    words = ["debootstrap", *chosen, o.suite, str(base), o.mirror, *script(o.suite, o.mirror)]
    if subprocess.run(words, stdout=subprocess.DEVNULL).returncode:
        raise InputError(f"debootstrap could not make {o.suite} from {o.mirror}")
    # debootstrap leaves it out; every installed system and every container has it, and torchrun looks its name up
    (base / "etc" / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    for user in o.user or ["root", "student"]:
        one = o.folder / user
        subprocess.run(["cp", "-a", str(base), str(one)], check=True)
        add(tried(one, user, o.command, o.share))
    return 0


def script(suite: str, mirror: str) -> list[str]:
    """debootstrap's script for a release that is newer than debootstrap; empty where it knows the release."""
    if (SCRIPTS / suite).exists():
        return []
    return ["gutsy" if "ubuntu" in mirror else "sid"]


def tried(root: Path, user: str, command: str, shared: Sequence[str]) -> dict[str, Any]:
    """Clones HEAD into the user's home and runs `command` there. What came of it, as a row of the table."""
    if user != "root":
        subprocess.run(["chroot", str(root), "useradd", "-m", user], check=True)
    home = Path("root" if user == "root" else f"home/{user}")
    subprocess.run(["git", "clone", "-q", str(ROOT), str(root / home / "moco")], check=True)
    owner = subprocess.run(["chroot", str(root), "id", "-u", user], check=True, capture_output=True, text=True)
    subprocess.run(["chown", "-R", owner.stdout.strip(), str(root / home / "moco")], check=True)
    passed_on = [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]
    settings = [f"{name}={os.environ[name]}" for name in passed_on]
    words = ["env", "-i", f"HOME=/{home}", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", *settings]
    inside = ["chroot", f"--userspec={user}", str(root), *words, "sh", "-c"]
    with mounted(root, shared):
        started = time.monotonic()
        done = subprocess.run([*inside, f"cd /{home}/moco && {command}"], capture_output=True, text=True)
        minutes = (time.monotonic() - started) / 60
        python = f"/{home}/moco/.venv/bin/python"
        asked = "import sys, torch; print(sys.version.split()[0], torch.__version__)"
        versions = subprocess.run([*inside, f"{python} -c '{asked}'"], capture_output=True, text=True)
        ffcv = subprocess.run([*inside, f"{python} -c 'import ffcv'"], capture_output=True)
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    print(done.stdout[-2000:], done.stderr[-2000:], sep="\n")
    release = dict(line.split("=", 1) for line in (root / "etc" / "os-release").read_text().splitlines() if "=" in line)
    version, torch = (versions.stdout.split() + ["none", "none"])[:2]
    last = done.stderr.strip().splitlines()[-KEPT_LINES:]
    return {
        "system": release["PRETTY_NAME"].strip('"'),
        "python": version,
        "torch": torch,
        "user": "root" if user == "root" else "ordinary, no sudo",
        "command": command,
        "ffcv": "yes" if ffcv.returncode == 0 else "no",
        "result": "ends well" if done.returncode == 0 else f"code {done.returncode}: {' '.join(last)}",
        "minutes": round(minutes, 1),
        "commit": head.stdout.strip(),
    }


@contextlib.contextmanager
def mounted(root: Path, shared: Sequence[str]) -> Iterator[None]:
    """The kernel's file systems and the shared paths, seen inside `root` while the block runs."""
    places = []
    try:
        for path in ("/proc", "/dev", "/dev/shm", *shared):
            inside = root / path.lstrip("/")
            if Path(path).is_dir():
                inside.mkdir(parents=True, exist_ok=True)
            else:
                inside.parent.mkdir(parents=True, exist_ok=True)
                inside.touch()
            subprocess.run(["mount", "--bind", path, str(inside)], check=True)
            places.append(inside)
        yield
    finally:
        for inside in reversed(places):
            subprocess.run(["umount", "-l", str(inside)], check=True)


def add(row: dict[str, Any]) -> None:
    """Puts the row in place of an earlier one of the same system, user and command; writes file and table."""
    rows = replaced(RESULTS, row, ("system", "user", "command"))
    write_json(RESULTS, rows)
    PAGE.write_text(put(PAGE.read_text(), "fresh roots", plain_table(rows, COLUMNS)))


if __name__ == "__main__":
    sys.exit(run_command(main))
