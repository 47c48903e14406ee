"""install.sh with everything it calls replaced by recorders, and the wheel that `pip install .` builds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest needs it there

ROOT = Path(__file__).resolve().parent.parent
APT_LINE = "apt-get update && apt-get install -y --no-install-recommends"

# An interpreter that makes no environment and installs nothing, but writes down what pip was asked for.
PYTHON = """#!/usr/bin/env bash
case "$*" in
    *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *"-m pip install"*) echo "$*" >>"$CALLS"; [ -z "${PIP_FAILS:-}" ] || { case "$*" in *ffcv==*) exit 1 ;; esac } ;;
    *"-m pip uninstall"*) echo "$*" >>"$CALLS" ;;
    *"import ffcv"*) grep -q 'pip install.*ffcv==' "$CALLS" ;;
    *) exec "$REAL_PYTHON" "$@" ;;
esac
"""


class Machine:
    """A folder with install.sh in it, and a PATH on which the test decides whether FFCV's libraries are there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls, self.libraries = folder, folder / "calls", folder / "libraries"
        for name in ("install.sh", "pyproject.toml", "requirements.txt", "requirements-dev.txt"):
            shutil.copy(ROOT / name, folder)
        (folder / "bin").mkdir()
        self.program("python", PYTHON)
        self.program("pkg-config", f'#!/bin/sh\n[ -e "{self.libraries}" ]\n')
        self.program("g++", "#!/bin/sh\n")
        self.calls.touch()

    def program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def install(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        known = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHON": str(self.folder / "bin" / "python"),
            "REAL_PYTHON": sys.executable,
            "CALLS": str(self.calls),
            "SYSTEM_PACKAGES": "no",
        }
        return subprocess.run(
            ["bash", "install.sh", *arguments], cwd=self.folder, env=known | environment, capture_output=True, text=True
        )

    def pip(self) -> list[str]:
        """What pip was asked for since the last call of this."""
        lines = self.calls.read_text().splitlines()
        seen, self.seen = getattr(self, "seen", 0), len(lines)
        return [re.sub(r"^.*?-m pip ", "", line) for line in lines[seen:]]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    if sys.version_info < (3, 11):
        pytest.skip("install.sh installs requirements.txt, whose versions need Python 3.11")
    return Machine(tmp_path)


def test_without_libraries_everything_but_ffcv(machine: Machine) -> None:
    done = machine.install()
    assert done.returncode == 0, done.stderr
    assert APT_LINE in done.stderr
    assert "libopencv-dev libturbojpeg0-dev" in done.stderr
    torch, rest, *others = machine.pip()
    assert torch.startswith("install") and torch.endswith("torch==2.13.0")  # by itself, before anything names a range
    assert "-r .venv/requirements-without-ffcv.txt" in rest
    installed = [call for call in others if call.startswith("install")]
    assert len(installed) == 1 and installed[0].endswith("--no-deps --no-build-isolation -e .")  # this folder
    asked = (machine.folder / ".venv/requirements-without-ffcv.txt").read_text()
    assert "\nffcv==" not in asked
    assert "\ntimm==" in asked


def test_second_start_installs_nothing_and_repeats_the_apt_line(machine: Machine) -> None:
    machine.install()
    machine.pip()
    again = machine.install()
    assert again.returncode == 0
    assert machine.pip() == []
    assert APT_LINE in again.stderr


def test_with_libraries_ffcv_too_and_then_silence(machine: Machine) -> None:
    machine.libraries.touch()
    assert "ffcv" in machine.install().stderr.splitlines()[-1]
    assert any(re.search(r"\bffcv==", call) for call in machine.pip())
    again = machine.install()
    assert (again.returncode, again.stdout, again.stderr, machine.pip()) == (0, "", "", [])


def test_libraries_that_come_later_are_noticed(machine: Machine) -> None:
    machine.install()
    machine.pip()
    machine.libraries.touch()
    machine.install()
    assert any("ffcv==" in call for call in machine.pip())
    assert machine.install().stderr == ""


@pytest.mark.parametrize("changed", ["requirements.txt", "requirements-dev.txt"])
def test_changed_requirements_are_installed(machine: Machine, changed: str) -> None:
    machine.libraries.touch()
    machine.install("dev")
    assert machine.install("dev").stderr == ""
    machine.pip()
    with (machine.folder / changed).open("a") as file:
        file.write("tabulate==0.9.0\n")
    machine.install("dev")
    assert machine.pip()
    # the trainer alone has nothing to do with the tools of the tests
    assert machine.install().stderr == ""


def test_a_missing_browser_is_named_where_it_is_used(machine: Machine) -> None:
    """Everything but a browser is on this PATH."""
    for folder in ("/bin", "/usr/bin"):
        for program in Path(folder).iterdir():
            link = machine.folder / "bin" / program.name
            if not program.name.startswith(("chromium", "google-chrome")) and not link.exists():
                link.symlink_to(program)
    machine.libraries.touch()
    alone = {"PATH": str(machine.folder / "bin")}
    assert "chromium" not in machine.install(**alone).stderr
    told = machine.install("dev", **alone)
    assert told.returncode == 0, told.stderr
    assert f"{APT_LINE} chromium" in told.stderr
    assert machine.install("dev", **alone).stderr == ""


def test_failed_build_of_ffcv_is_no_failure(machine: Machine) -> None:
    machine.libraries.touch()
    done = machine.install(PIP_FAILS="1")
    assert done.returncode == 0
    assert "did not build" in done.stderr


def test_failures_say_what_to_do(machine: Machine) -> None:
    assert machine.install("everything").returncode == 2
    old = machine.install(PYTHON="false")
    assert old.returncode == 1
    assert "PYTHON=" in old.stderr


def test_all_requirements_are_pinned() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
        assert [line for line in lines if line and not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


def test_ci_runs_the_command_of_the_readme() -> None:
    commands = (ROOT / ".ci/run").read_text().splitlines()
    assert "make test" in commands
    assert "make test-slurm SLURM=required" in commands
    readme = (ROOT / "README.md").read_text()
    assert "make test" in readme
    assert "make quickstart" in readme


@pytest.mark.parametrize(
    ("manager", "line"),
    [
        ("dnf", "dnf install gcc-c++ pkgconf-pkg-config opencv-devel turbojpeg-devel"),
        ("brew", "brew install pkgconf opencv jpeg-turbo"),
        ("", "your package manager, for (Debian's names) g++ pkg-config libopencv-dev libturbojpeg0-dev"),
    ],
)
def test_without_apt_it_says_what_to_install_instead(machine: Machine, manager: str, line: str) -> None:
    (machine.folder / "bin" / "g++").unlink()
    (machine.folder / "bin" / "pkg-config").unlink()
    left_out = ("apt", "g++", "pkg-config", "dnf", "brew", "sudo")
    for folder in ("/bin", "/usr/bin"):
        for program in Path(folder).iterdir():
            link = machine.folder / "bin" / program.name
            if not program.name.startswith(left_out) and not link.exists():
                link.symlink_to(program)
    if manager:
        machine.program(manager, "#!/bin/sh\n")
    done = machine.install(PATH=str(machine.folder / "bin"), SYSTEM_PACKAGES="yes")
    assert done.returncode == 0, done.stderr
    assert line in done.stderr
    assert "apt-get update" not in done.stderr
    assert machine.pip()  # all but FFCV is installed


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("wheel")
    tree = tmp_path / "tree"
    skip = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    shutil.copytree(ROOT / "moco", tree / "moco", ignore=skip)
    for folder in ("launch", "tests", "benchmarks", "examples"):
        if (ROOT / folder).exists():
            shutil.copytree(ROOT / folder, tree / folder, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE", "main_moco.py", "main_lincls.py"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", str(tmp_path), str(tree)], check=True, capture_output=True)
    (built,) = tmp_path.glob("momentum_contrast-*.whl")
    return built


def test_the_wheel_runs_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """Every console script, outside the clone. Its requirements are lent from this environment, this clone is not."""
    import torch

    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(f"{Path(torch.__file__).parent.parent}\n")  # its own .pth files are not read
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    started = {
        name: subprocess.Popen(
            [environment / "bin" / name, "--help"], cwd=tmp_path, env=settings, stdout=subprocess.PIPE, text=True
        )
        for name in scripts
    }
    where = [python, "-c", "import moco; print(moco.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=settings, capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).parent == site / "moco"
    for name, process in started.items():
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 0, name
        assert said.startswith("usage: "), name


def test_wheel_holds_the_package_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("METADATA"))
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"moco"}
    assert set(names) >= {str(path.relative_to(ROOT)) for path in (ROOT / "moco").rglob("*.py")}
    assert {f"moco/report/page.{end}" for end in ("css", "html", "js")} | {"moco/py.typed"} <= set(names)
    extras = set(re.findall(r"^Provides-Extra: (\S+)$", metadata, re.MULTILINE))
    assert extras >= {"ffcv", "figures", "slurm", "wandb", "onnx", "text", "depth", "all"}
    assert not re.search(r"^Requires-Dist: (ffcv|numba)\S*$", metadata, re.MULTILINE)  # only with the extra


def test_console_scripts_exist() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for target in scripts.values():
        module, function = target.split(":")
        assert f"\ndef {function}(" in (ROOT / f"{module.replace('.', '/')}.py").read_text()
