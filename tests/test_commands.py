"""Exceptions become one line and an exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.jobs import main as jobs
from launch.submitit_job import main as submit
from moco.commands import run_command
from moco.data.beton.__main__ import main as beton
from moco.data.stats import main as stats
from moco.errors import (
    EXIT_INPUT,
    EXIT_INTERRUPTED,
    EXIT_NUMERICS,
    EXIT_OK,
    EXIT_PREEMPTED,
    EXIT_RANK,
    InputError,
    NumericsError,
    RankError,
    SampleError,
    flag,
)
from moco.evaluate.__main__ import main as evaluate
from moco.evaluate.options import EvaluateOptions, parse_evaluate
from moco.export.__main__ import main as export
from moco.pretrain.__main__ import main as pretrain
from moco.pretrain.options import PretrainOptions, parse_pretrain
from moco.probe.__main__ import main as probe
from moco.probe.depth.__main__ import main as depth
from moco.probe.depth.options import DepthOptions, parse_depth
from moco.probe.options import LinclsOptions, parse_lincls
from moco.report.__main__ import main as report
from moco.sentences.options import SentenceOptions, parse_sentences
from moco.sentences.train import main as sentences

ROOT = Path(__file__).resolve().parent.parent


def failing(error: BaseException) -> Callable[[], int]:
    def run() -> int:
        raise error

    return run


def test_codes_are_what_scripts_rely_on() -> None:
    assert (EXIT_OK, EXIT_RANK, EXIT_INPUT, EXIT_NUMERICS, EXIT_PREEMPTED) == (0, 1, 2, 3, 75)
    assert run_command(lambda: 0) == 0 and run_command(lambda: EXIT_PREEMPTED) == 75


@pytest.mark.parametrize(
    ("error", "code", "on_rank_0", "on_rank_1"),
    [
        (InputError("no folder"), 2, "error: no folder\n", ""),
        (NumericsError("step 3"), 3, "error: step 3\n", ""),
        (SampleError("a.png"), 2, "error: a.png\n", "error: a.png\n"),  # only one rank knows
        (RankError("rank 2"), 1, "error (seen by rank 0): rank 2\n", "error (seen by rank 1): rank 2\n"),
    ],
)
def test_one_line_and_a_code(
    error: Exception,
    code: int,
    on_rank_0: str,
    on_rank_1: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for rank, told in (("0", on_rank_0), ("1", on_rank_1)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert run_command(failing(error)) == code
        assert capsys.readouterr() == ("", told)


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="a bug"):
        run_command(failing(ValueError("a bug")))
    with pytest.raises(OSError, match="no file"):
        run_command(failing(OSError("no file")))


def test_a_path_that_cannot_be_used_and_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: len(Path("x" * 300).read_text())) == EXIT_INPUT
    assert capsys.readouterr().err == f"error: {'x' * 300}: File name too long\n"
    assert run_command(failing(KeyboardInterrupt())) == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


ABORTS_AT_THE_END = """
import atexit, ctypes, os, sys, threading
from moco.commands import end_process
abort = ctypes.CFUNCTYPE(None)(os.abort)
ctypes.CDLL(None).__cxa_atexit(abort, None, None)  # as a library does whose threads are still alive
threading.Thread(target=lambda: (threading.main_thread().join(), print("thread"))).start()
atexit.register(lambda: print("atexit"))
print("work")
END(7)
"""


@pytest.mark.parametrize(("end", "codes"), [("end_process", [7]), ("sys.exit", [-6, -11])])
def test_the_end_of_a_process_cannot_change_its_code(end: str, codes: list[int]) -> None:
    """Threads, atexit functions and output come first. The second case shows that the first proves something."""
    command = [sys.executable, "-c", ABORTS_AT_THE_END.replace("END", end)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode in codes
    if end == "end_process":
        assert done.stdout == "work\nthread\natexit\n"


@pytest.mark.parametrize(("ends", "code"), [("", 0), ("sys.exit(75)", 75), ("sys.exit('no')", 1), ("1 / 0", 1)])
def test_a_rank_of_submitit_ends_with_its_own_code(ends: str, code: int, tmp_path: Path) -> None:
    checked = "assert __name__ == '__main__' and sys.argv[1:] == ['folder']\n"
    module = ABORTS_AT_THE_END.replace("END(7)", checked + ends)
    (tmp_path / "some_job.py").write_text(module)
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    command = [sys.executable, "-u", "-m", "launch.rank", "-u", "-m", "some_job", "folder"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == code
    assert done.stdout == "work\nthread\natexit\n"
    assert ("ZeroDivisionError" in done.stderr) == (ends == "1 / 0")


def commands_of_the_tree() -> list[Path]:
    """Every file of the program that can be started."""
    there = [*ROOT.glob("main_*.py"), *(ROOT / "moco").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]
    return [path for path in there if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]


def test_every_command_leaves_by_the_ordered_end() -> None:
    """Mains, probe, evaluation, sentences, launch, console scripts: none takes the interpreter down."""
    commands = commands_of_the_tree()
    assert len(commands) >= 14
    for path in commands:
        last = path.read_text(encoding="utf-8").partition('if __name__ == "__main__":\n')[2].splitlines()
        assert len(last) == 1 and last[0].startswith("    end_with("), path
    scripts = re.findall(r'^moco-\w+ = "(.+):(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert len(scripts) == 5
    for module, function in scripts:
        text = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        assert f'def {function}() -> NoReturn:\n    """Runs the console script."""\n    end_with(main)\n' in text, (
            module
        )


@pytest.mark.parametrize(("words", "code"), [("--help", 0), ("--dry-run --dataset digits", 0), ("--nonsense", 2)])
def test_a_library_that_aborts_at_the_end_changes_no_code(words: str, code: int, tmp_path: Path) -> None:
    """By the console script: a thread inside torch is there from the start, and --help ends by SystemExit."""
    start = "from tests.reliability.busy_threads import digits; digits('train', None);"
    start += "import sys; from moco.pretrain.__main__ import script; sys.argv[0] = 'moco-pretrain'; script()"
    done = subprocess.run([sys.executable, "-c", start, *words.split()], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == code, done.stderr


def test_a_thread_inside_torch_aborts_an_ordinary_end() -> None:
    """What the ordered end is for. Python 3.14 lets such threads hang instead."""
    if sys.version_info >= (3, 14):
        pytest.skip("Python does not end such threads any more")
    start = "from tests.reliability.busy_threads import digits; digits('train', None); import sys; sys.exit(0)"
    codes = [subprocess.run([sys.executable, "-c", start], cwd=ROOT, capture_output=True).returncode for _ in range(3)]
    assert -6 in codes


def test_a_bug_ends_with_1_and_its_traceback(tmp_path: Path) -> None:
    code = "from moco.commands import end_with\ndef main():\n    raise ValueError('a bug')\nend_with(main)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and done.stderr.endswith("ValueError: a bug\n")


def test_output_that_cannot_be_written_is_no_success() -> None:
    code = "import sys; from moco.commands import end_process; sys.stdout.write('x'); end_process(0)"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, cwd=ROOT)
    assert done.returncode == 1


DIGITS = "--dataset digits -a smallcnn --epochs 1 --moco-k 64 --moco-dim 16 -b 64 --eval-freq 0"
V3 = DIGITS.replace("--moco-k 64", "--keys batch")
JOB = "--dry-run {} -- --dataset digits"
LONG = "x" * 300
REFUSED = [
    (pretrain, f"{DIGITS} --loss infonce --moco-tau-plus 0.2", "--moco-tau-plus is not read with --loss infonce"),
    (pretrain, f"{DIGITS} --in-batch cross-view", "--in-batch is not read with --moco-k 64"),
    (pretrain, f"{DIGITS} --init-std 0", "--init-std must be greater than 0"),
    (pretrain, f"{DIGITS} -b 1441 --no-drop-last", "leave 1 for the last batch of an epoch"),
    (pretrain, f"{DIGITS} --loss hcl --moco-tau-plus nan", "must be at least 0 and less than 1, not nan"),
    (pretrain, f"{DIGITS} --loss hcl --moco-beta -5", "must be at least 0 and finite, not -5"),
    (pretrain, f"{DIGITS} --loss hard --moco-hard-alpha 7", "must be greater than 0 and at most 1, not 7"),
    (
        pretrain,
        f"{DIGITS} --loss hard --moco-unif-no-intra-batch",
        "--moco-unif-no-intra-batch is not read",
    ),
    (pretrain, f"{DIGITS} --loss simple --moco-t 0.2", "--moco-t is not read with --loss simple"),
    (pretrain, f"{DIGITS} --cos --schedule 1 2", "--schedule is not read with --cos"),
    (pretrain, f"{DIGITS} --aug-plus --recipe v1", "--aug-plus is not read with --recipe v1"),
    (pretrain, f"{DIGITS} --bn local --bn-group-size 7", "--bn-group-size is not read with --bn local"),
    (pretrain, f"{DIGITS} --moco-mlp-dim 7", "--moco-mlp-dim is not read with the default of --moco-mlp-layers"),
    (pretrain, f"{DIGITS} --mlp --moco-mlp-bn", "--moco-mlp-bn is not read with the default of --moco-mlp-layers"),
    (pretrain, f"{DIGITS} --mlp --moco-mlp-layers 2", "--mlp is not read with --moco-mlp-layers 2"),
    (pretrain, f"{DIGITS} --moco-mlp-layers 1 --moco-mlp-dim 9", "--moco-mlp-dim is not read with --moco-mlp-layers 1"),
    (pretrain, f"{DIGITS} --crop-min 1.5", "--crop-min, a share of the image, must be at most 1, not 1.5"),
    (pretrain, f"{DIGITS} --crop-min 0", "--crop-min must be greater than 0"),
    (pretrain, f"{DIGITS} --queue-per-view", "--queue-per-view needs --symmetric"),
    (pretrain, f"{V3} --moco-k 9", "--moco-k is not read with --keys batch"),
    (pretrain, f"{V3} --accum-steps 2", "--accum-steps splits the batch, but with --keys batch"),
    (pretrain, f"{V3} --symmetric --queue-per-view", "--queue-per-view has no meaning with --keys"),
    (pretrain, f"{V3} -b 1", "--keys batch compares the images of a batch: --batch-size must be at"),
    (pretrain, f"{DIGITS} --moco-k 0 --predictor vit", "--predictor has no meaning with --moco-k 0"),
    (pretrain, f"{DIGITS} --stop-grad-conv1", "--stop-grad-conv1 is for ViTs with a projection of patches"),
    (pretrain, f"{DIGITS} --moco-k 0 --queue-per-view", "--queue-per-view has no meaning with --moco-k 0"),
    (pretrain, f"{DIGITS} --optimizer adamw --momentum 0.8", "--momentum is not read with --optimizer adamw"),
    (pretrain, f"{DIGITS} --lr-per-step", "--lr-per-step works only with a warm-up or a cosine"),
    (pretrain, f"{DIGITS} --moco-m 0:0.9,3:2", "--moco-m must be between 0 and 1, not 2"),
    (pretrain, f"{DIGITS} --keep-every 5", "--keep-every is not read with --keep-last 0"),
    (pretrain, f"{DIGITS} --knn-k 5", "--knn-k is not read with --eval-freq 0"),
    (sentences, "novels --folds 5", "--folds is not read with training alone, without --classify"),
    (sentences, "novels --keep-every 5", "--keep-every is not read with --keep-last 0"),
    (pretrain, f"{DIGITS} --start-epoch 5", "--start-epoch 5 is past the last of 1 epochs"),
    (pretrain, f"{DIGITS} --schedule -3 -2", "--schedule takes epochs from 0 on, not -3 -2"),
    (pretrain, f"{DIGITS} --epochs 99999999999999999999", "--epochs must be below 2^31"),
    (pretrain, f"{DIGITS} --output-dir {LONG}", "File name too long"),
    (probe, "--dataset digits --sweep --lr 5", "--lr is not read with --sweep"),
    (probe, "--dataset digits --cached --momentum 9", "--momentum is not read with --cached"),
    (probe, "--dataset digits --optimizer adam --momentum .5", "--momentum is not read with --optimizer adam"),
    (probe, "--dataset digits --trunk-lr 5", "--trunk-lr is not read with frozen features"),
    (probe, "--dataset digits --folds 3", "--folds is not read with a classifier that is trained by epochs"),
    (probe, f"--dataset digits --pretrained {LONG}", "File name too long"),
    (evaluate, f"{LONG} --dataset digits", "File name too long"),
    (evaluate, "c --dataset digits --bins 10000000000000", "--bins must be"),
    (evaluate, "c --dataset digits --align-alpha 1e308", "--align-alpha must be at most 100"),
    (evaluate, "c --dataset digits --seed -1", "--seed must be at least 0"),
    (evaluate, "c --dataset digits --seed 99999999999999999999999999", "--seed must be at least 0 and less than 2^63"),
    (depth, "", "say where the images are"),
    (depth, "nowhere", "neither nyu_depth_v2_labeled.mat nor a folder val of pairs"),
    (depth, "nowhere --channels 1", "--dataset nyu-depth has RGB of 8 bits: leave out --channels and --value-range"),
    (depth, "--dataset digits", "--dataset digits has no depth: pass --dataset nyu-depth"),
    (depth, "d --evaluate", "--evaluate needs a trained predictor"),
    (depth, "d --evaluate --resume c --lr 1", "--lr is not read with --evaluate"),
    (depth, "d --lr-drop 2", "--lr-drop must be at most 1, not 2"),
    (depth, "d --adam-betas 1 1", "--adam-betas takes two numbers from 0 to below 1"),
    (depth, f"d --pretrained {LONG}", "File name too long"),
    (export, f"{LONG} --to onnx", "File name too long"),
    (report, LONG, ""),
    (beton, f"info {LONG}", ""),
    (beton, f"write {LONG} out.beton", ""),
    (beton, "write . out.beton --max-resolution 0", "--max-resolution"),
    (pretrain, f"{DIGITS} --channels 0", "--channels must lie between 1 and 1024, not 0"),
    (pretrain, f"{DIGITS} --channels 5", "--dataset digits has images of 3 channels: pass --channels 3"),
    (pretrain, f"{DIGITS} --value-range 5", "--value-range takes LOW,HIGH, or 3 such pairs in a row, not 1 numbers"),
    (pretrain, f"{DIGITS} --value-range 9,5", "LOW must be below HIGH"),
    (pretrain, f"{DIGITS} --value-range 0,inf", "--value-range takes finite numbers"),
    (pretrain, f"{DIGITS} --value-range 0;9", "--value-range takes numbers with commas between them"),
    (pretrain, f"{DIGITS} --mean .5,.5,.5", "--mean and --std belong together"),
    (pretrain, f"{DIGITS} --mean .5 --std .5", "--mean has 1 numbers for 3 channels"),
    (pretrain, f"{DIGITS} --mean .5,.5,.5 --std .5,0,.5", "a standard deviation is greater than 0"),
    (stats, "nowhere", "there is no folder nowhere"),
    (stats, "--dataset digits --channels 4", "--dataset digits has images of 3 channels"),
    (submit, JOB.format("--mem-gb nan"), "argument --mem-gb: nan must be at least 0.001"),
    (submit, JOB.format("--mem-gb inf"), "argument --mem-gb"),
    (submit, JOB.format("--nodes 0"), "argument --nodes: 0 must be at least 1"),
    (submit, JOB.format("--tasks-per-node -2"), "argument --tasks-per-node"),
    (submit, JOB.format("--cpus-per-task 0"), "argument --cpus-per-task"),
    (submit, JOB.format("--time 0"), "argument --time"),
    (submit, JOB.format("--time x"), "argument --time: 'x' is not a whole number"),
    (submit, JOB.format("--signal-delay 999999 --time 1"), "--signal-delay 999999 s must be shorter than --time 1 min"),
    (submit, JOB.format("--stalled-restarts -1"), "argument --stalled-restarts"),
    (submit, JOB.format("--sbatch =x"), "--sbatch =x must have the form NAME=VALUE"),
    (submit, JOB.format("--name ''"), "--name must not be empty"),
    (submit, "--cluster debug -- --dataset digits --output-dir /dev/null/x", "Not a directory"),
    (submit, "--cluster debug -- /nonexistent", "there is no folder /nonexistent"),
    (jobs, "--index .", "Is a directory"),
    (jobs, "--watch nan", "argument --watch"),
    (jobs, "--watch -1", "argument --watch"),
    (jobs, f"--index {LONG}", "File name too long"),
]


@pytest.mark.parametrize(("main", "words", "says"), REFUSED)
def test_bad_commands_end_with_one_sentence(
    main: Callable[[list[str]], int],
    words: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(words)) == EXIT_INPUT
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert says in lines[0]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    half_written = [path for path in written if "jobs" not in path.parts]  # a job that began keeps its record
    assert not half_written


NASTY = ("", "nan", "-inf", "-1", "0", "1e308", "9" * 30, LONG, "../..", "a:b", "1,2", "caf\udce9")
PARSERS: dict[str, Callable[[list[str]], object]] = {
    "pretrain": parse_pretrain,
    "probe": parse_lincls,
    "evaluate": parse_evaluate,
    "depth": parse_depth,
    "sentences": parse_sentences,
}
OPTIONS = {
    "pretrain": PretrainOptions,
    "probe": LinclsOptions,
    "evaluate": EvaluateOptions,
    "depth": DepthOptions,
    "sentences": SentenceOptions,
}


@pytest.mark.parametrize("command", PARSERS)
def test_any_value_of_any_option_is_taken_or_refused_in_a_sentence(command: str) -> None:
    start = ["novels"] if command == "sentences" else ["--dataset", "digits"]
    start += ["checkpoint"] if command == "evaluate" else []
    names = [field.name for field in dataclasses.fields(OPTIONS[command]) if field.metadata["names"] is not None]
    for name in names:
        for value in NASTY:
            with contextlib.suppress(InputError):
                PARSERS[command]([*start, f"{flag(name)}={value}"])


TOOLS: dict[str, tuple[Callable[[list[str]], int], str, str]] = {
    "export": (export, "nowhere.pth.tar --to onnx", "output-dir arch image-size recipe licence to"),
    "report": (report, "nowhere", "output neighbours watch"),
    "beton write": (
        beton,
        "write nowhere out.beton",
        "dataset mode quality max-resolution workers proportion subset value-range",
    ),
    "stats": (stats, "nowhere", "dataset split channels value-range workers"),
    "beton verify": (beton, "verify nowhere.beton", "workers"),
    "jobs": (jobs, "--index nowhere", "index"),
    "submit": (
        submit,
        "--dry-run",
        "nodes gpus-per-node tasks-per-node cpus-per-task time signal-delay mem-gb stalled-restarts sbatch name index",
    ),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_any_value_ends_a_tool_with_0_or_2(tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main, words, options = TOOLS[tool]
    monkeypatch.chdir(tmp_path)
    after = ["--", "--dataset", "digits", "-a", "smallcnn"] if tool == "submit" else []
    for name in options.split():
        for value in NASTY:
            assert main([*words.split(), f"--{name}={value}", *after]) in (EXIT_OK, EXIT_INPUT), (name, value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_importing_every_module_changes_no_warning_filter() -> None:
    """A library's user decides which warnings are shown; commands decide for themselves."""
    program = """
import importlib, pkgutil, warnings
import moco, numba, numpy, timm, torch, torchvision, PIL.Image, scipy.stats, sklearn.linear_model, matplotlib.pyplot
before = list(warnings.filters)
for module in pkgutil.walk_packages(moco.__path__, "moco."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print([rule for rule in warnings.filters if rule not in before and rule[1] and "moco" not in rule[3:]])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
