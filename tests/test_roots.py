"""The scripts behind the tables of docs/installation.md: no root is made here and no suite run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import dockerfile_lines, fresh_root, interpreters

ROOT = Path(__file__).resolve().parent.parent
LINES = ROOT / "tests" / "dockerfile_lines.py"
REPORT = """<testsuites><testsuite name="pytest" errors="1" failures="2" skipped="3" tests="16">
<testcase name="a"/></testsuite></testsuites>"""


def lines(*words: str) -> str:
    return subprocess.run([sys.executable, LINES, *words], check=True, capture_output=True, text=True).stdout


def test_every_instruction_of_the_dockerfile_becomes_bash() -> None:
    text = lines()
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    runs = len(re.findall(r"^(?:RUN|CMD) ", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert len(re.findall(r"^run '", text, re.MULTILINE)) == runs == 5
    words = [word for word, _ in dockerfile_lines.instructions((ROOT / "Dockerfile").read_text())]
    assert set(words) == {"FROM", "ARG", "SHELL", "RUN", "USER", "WORKDIR", "ENV", "COPY", "CMD"}


def test_build_arguments_and_the_index() -> None:
    assert "export TORCH_INDEX='a b'" in lines("--build-arg", "TORCH_INDEX=a b")
    assert "--index-url" in lines()
    assert "--index-url" not in lines("--own-index")


def test_the_lines_run_with_their_user_folder_and_settings(tmp_path: Path) -> None:
    """Of a Dockerfile without packages, accounts and files; here every user is this one."""
    text = 'SHELL ["/bin/bash", "-c"]\nARG A=1\nARG B=2\nENV C=$A-x D=y\nWORKDIR {0}/in\n'
    text += 'RUN echo "$A $B $C $D" \\\n# no\n >f\nCMD ["cat", "f"]\n'
    script = dockerfile_lines.script(text.format(tmp_path), {"B": "5"})
    start = dockerfile_lines.START.replace("apt-get", "true")
    done = subprocess.run(["bash", "-c", "\n".join([start, *script])], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 5 1-x y\n", "")
    assert (tmp_path / "in" / "f").exists()
    failing = dockerfile_lines.script("RUN false\nRUN echo on", {})
    done = subprocess.run(["bash", "-c", "\n".join([start, *failing])], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")


def test_an_instruction_that_is_not_translated_is_named() -> None:
    with pytest.raises(ValueError, match="HEALTHCHECK of the Dockerfile is not translated"):
        list(dockerfile_lines.script("HEALTHCHECK NONE", {}))


def test_the_script_of_a_release_that_debootstrap_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fresh_root, "SCRIPTS", tmp_path)
    (tmp_path / "bookworm").touch()
    assert fresh_root.script("bookworm", "http://example.org/debian") == []
    assert fresh_root.script("trixie", "http://example.org/debian") == ["sid"]
    assert fresh_root.script("noble", "http://example.org/ubuntu") == ["gutsy"]


def test_counts_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    assert interpreters.counts(tmp_path / "report.xml") == {"passed": 10, "failed": 3, "skipped": 3}


def test_quick_files_are_those_of_make_quick() -> None:
    printed = subprocess.run(
        ["make", "-n", "quick"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout  # fmt: skip
    files = interpreters.quick_files()
    assert len(files) > 5 and f'-m "not slow" {" ".join(files)}' in printed
    assert all((ROOT / name).exists() for name in files)


def test_a_row_replaces_the_one_of_the_same_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- interpreters -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(interpreters, "PAGE", page)
    monkeypatch.setattr(interpreters, "RESULTS", tmp_path / "rows.json")
    one = interpreters.row("portable", {"passed": 1, "failed": 0, "skipped": 2}, "f" * 40 + "-dirty")
    for changed in ({"python": "3.14.0"}, {"python": "3.9.1"}, {"python": "3.14.0", "passed": 7}):
        interpreters.add(one | changed)
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[1] for line in rows] == ["python", "3.9.1", "3.14.0"]
    assert " | 7 | 0 | 2 | " in rows[2] and rows[2].endswith(f"| {'f' * 12}-dirty |")
    assert page.read_text().endswith("<!-- end -->\nafter\n")


def test_the_tests_of_the_oldest_set_are_those_of_the_table() -> None:
    """What the workflow runs is what the table counts."""
    text = (ROOT / "Makefile").read_text()
    assert re.search(
        r"^test-oldest:.*\n(?:\t.*\n)*\t@\$\(OLDEST\) -m tests\.interpreters \$\(ARGS\)$", text, re.MULTILINE
    )
    assert "- run: make test-oldest\n" in (ROOT / ".github/workflows/tests.yml").read_text()
