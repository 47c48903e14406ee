"""main_moco.py as its users run it, on made-up images: heads x BatchNorm x precision x data, and every bad input.

The processes are forked by tests/reliability/launcher.py, which spares each of them the seconds of importing; two
tests
start the real thing, with python and with torchrun.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from moco.encoders import build_encoder
from moco.errors import EXIT_INPUT, EXIT_NUMERICS, EXIT_OK
from moco.run import checkpoint
from moco.run.lock import RunLock
from moco.run.log import read_log
from tests.reliability.runs import Ended, Launcher

# A rank that should end hangs in gloo now and then (docs/reliability.md, "Known fault")
ROOT = Path(__file__).resolve().parents[2]
SMALL = shlex.split("-a smallcnn --image-size 16 --moco-dim 8 --moco-k 21 -b 8 -j 2 --epochs 2 -p 1 --no-tensorboard")
SMALL += ["--seed", "1"]


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    launcher = Launcher()
    yield launcher
    launcher.close()


def write_images(folder: Path, train: int = 9, val: int = 3, classes: tuple[str, ...] = ("bright", "dark")) -> Path:
    noise = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for number, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                low = 90 * (1 - number % 2)
                pixels = noise.integers(low, low + 150, (34 + i % 5, 38 - i % 7, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 images to train on, 6 to validate."""
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def finished(launcher: Launcher, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    ended = launcher.run([*SMALL, str(images)], folder)
    assert ended.codes == [EXIT_OK], ended.output
    return folder


# -- it trains ---------------------------------------------------------------------------------------------------------


PARTS = {"contr": "loss_contrastive", "align": "loss_align", "unif": "loss_uniform"}


# every two of: head, --bn and ranks, --amp, --accum-steps, data, arch
@pytest.mark.parametrize(
    ("words", "bn", "world", "parts"),
    [
        ("--loss infonce --amp bf16 --eval-freq 1", "split", 1, "contr"),
        ("--loss infonce --accum-steps 2 -b 9 --mlp --aug-plus --cos --moco-t 0.2", "shuffle", 2, "contr"),
        ("--loss infonce --amp fp16 --moco-t 1 --grad-clip 1 --epochs 3", "local", 1, "contr"),
        ("--loss align-uniform -a resnet18_small --epochs 1", "split", 1, "align unif"),
        ("--loss align-uniform --amp bf16 --unif-global -b 7 --warmup-epochs 1", "shuffle", 2, "align unif"),
        ("--loss align-uniform --amp fp16 --accum-steps 3 --no-channels-last", "local", 2, "align unif"),
        ("--moco-contr-w 1 --moco-unif-no-intra-batch --amp fp16 --accum-steps 2", "shuffle", 2, "contr align unif"),
        ("--moco-contr-w .5 --moco-unif-w 0 --moco-align-alpha 1 -a timm:resnet10t", "split", 2, "contr align"),
        (
            "--loss align-uniform --dataset digits --image-size 32 -b 700 --moco-k 900 --eval-freq 0",
            "split",
            1,
            "align unif",
        ),
        ("--loss infonce --dataset digits -b 500 --eval-freq 0", "shuffle", 2, "contr"),
    ],
)
def test_trains(launcher: Launcher, images: Path, tmp_path: Path, words: str, bn: str, world: int, parts: str) -> None:
    group = ["--bn-group-size", "4"] if bn == "split" else []
    argv = [*SMALL, *group, "--bn", bn, *words.split()]
    digits = "digits" in words
    if digits:
        argv += ["--epochs", "1"]
    else:
        argv += [str(images)]
    folder = tmp_path / "run"
    ended = launcher.run(argv, folder, world=world)
    assert ended.codes == [EXIT_OK] * world, ended.output
    assert "Traceback" not in ended.output
    assert all(not text.strip() for text in ended.outputs[1:]), "rank 0 speaks for all"

    options = json.loads((folder / "options.json").read_text())
    epochs, batch, length = options["epochs"], options["batch_size"], options["moco_k"]
    steps = (1438 if digits else 18) // batch
    log = read_log(folder / "log.jsonl")
    train = [record for record in log if record["kind"] == "train"]
    assert [record["global_step"] for record in train] == list(range(1, epochs * steps + 1))
    names = {"loss", "acc1", "acc5", "alignment", "uniformity", "lr"} | {PARTS[part] for part in parts.split()}
    for record in train:
        assert names <= record.keys() and not set(PARTS.values()) - names & record.keys()
        assert all(np.isfinite(record[name]) for name in names)
        assert {"images_per_s", "data_wait", "memory_gb", "eta_s"} <= record["timing"].keys()
    weighted = {"loss_contrastive": "moco_contr_w", "loss_align": "moco_align_w", "loss_uniform": "moco_unif_w"}
    for record in train:
        total = sum(options[weight] * record[name] for name, weight in weighted.items() if name in record)
        assert record["loss"] == pytest.approx(total, rel=1e-3, abs=1e-4)
    assert [r["epoch"] for r in log if r["kind"] == "epoch"] == list(range(epochs))
    evals = [record for record in log if record["kind"] == "eval"]
    assert len(evals) == {"1": epochs, "0": 0, "": 1}[words.partition("--eval-freq ")[2]]
    for record in evals:
        assert {"knn_top1", "val_alignment", "val_uniformity", "val_tolerance"} <= record.keys()

    files = checkpoint.checkpoints(folder)
    assert [path.name for path in files] == [f"checkpoint_{epoch:04d}.pth.tar" for epoch in range(epochs)]
    state = checkpoint.load(files[-1])
    assert (state["epoch"], state["arch"]) == (epochs, options["arch"])
    start = build_encoder(options["arch"], 8, options["mlp"]).state_dict()
    tensors = {name.removeprefix("module."): value for name, value in state["state_dict"].items()}
    assert set(tensors) == {f"encoder_{e}.{name}" for e in "qk" for name in start} | {"queue", "queue_ptr"}
    assert tensors["queue_ptr"].item() == epochs * steps * batch % length
    assert state["moco_run"]["queue_state"]["filled"].item() == min(epochs * steps * batch, length)
    torch.testing.assert_close(tensors["queue"].norm(dim=0), torch.ones(length))
    known = state["moco_run"]["queue_state"]["labels"]
    assert known.min() >= 0 or epochs * steps * batch < length
    assert known.max() == (9 if digits else 1)
    moved = [name for name in start if not tensors[f"encoder_q.{name}"].equal(tensors[f"encoder_k.{name}"])]
    assert any(name.endswith("weight") for name in moved), "no step was applied"
    assert all(value.isfinite().all() for value in tensors.values())


def test_symmetric_supcon_from_an_encoder_with_a_falling_temperature(
    launcher: Launcher, images: Path, finished: Path, tmp_path: Path
) -> None:
    """Both views' keys are queued with their labels; the temperature of each epoch is in the log."""
    start = checkpoint.checkpoints(finished)[-1]
    words = f"--loss supcon --symmetric --moco-t 0:0.5,2:0.1 --epochs 3 --accum-steps 2 --lr 1e-9 --init-from {start}"
    ended = launcher.run([*SMALL, *words.split(), str(images)], tmp_path / "run", world=2)
    assert ended.codes == [EXIT_OK] * 2 and "head and queue start afresh" in ended.output, ended.output
    train = [record for record in read_log(tmp_path / "run/log.jsonl") if record["kind"] == "train"]
    assert [record["moco_t"] for record in train] == pytest.approx([0.5, 0.5, 0.3, 0.3, 0.1, 0.1])
    state, before = checkpoint.load(checkpoint.checkpoints(tmp_path / "run")[-1]), checkpoint.load(start)
    assert state["state_dict"]["module.queue_ptr"].item() == 2 * 6 * 8 % 21
    assert set(state["moco_run"]["queue_state"]["labels"].tolist()) == {0, 1}
    for name, value in before["state_dict"].items():
        if "encoder_q" in name and ".fc." not in name and value.is_floating_point() and "running" not in name:
            torch.testing.assert_close(state["state_dict"][name], value, rtol=0, atol=1e-6)


def test_without_a_queue_it_trains_and_goes_on_with_the_same_bits(
    launcher: Launcher, images: Path, tmp_path: Path
) -> None:
    """With the short batch at the end of each epoch: of 18 images 7, 7 and 4, which both ranks share."""
    words = "--moco-k 0 --loss align-uniform --moco-contr-w 1 --in-batch cross-view --no-drop-last -b 7 --init-std 0.05"
    argv = [*SMALL, *words.split(), "--deterministic", str(images)]
    for folder, *more in (("whole",), ("cut", "--epochs", "1"), ("cut", "--resume", "auto")):
        ended = launcher.run([*argv, *more], tmp_path / folder, world=2)
        assert ended.codes == [EXIT_OK] * 2, ended.output
    whole, cut = (checkpoint.load(checkpoint.checkpoints(tmp_path / folder)[-1]) for folder in ("whole", "cut"))
    assert whole["state_dict"]["module.queue"].shape == (8, 0) and whole["epoch"] == cut["epoch"] == 2
    assert all(value.equal(cut["state_dict"][name]) for name, value in whole["state_dict"].items())
    losses = [[r["loss"] for r in read_log(tmp_path / folder / "log.jsonl") if r["kind"] == "train"]
              for folder in ("whole", "cut")]  # fmt: skip
    assert losses[0] == losses[1] and len(set(losses[0])) == 6


def test_a_fresh_run_is_a_function_of_its_seed(
    launcher: Launcher, images: Path, finished: Path, tmp_path: Path
) -> None:
    """The same seed gives the same bits; another one does not; without one, a seed is drawn and saved."""

    def trained(folder: Path) -> tuple[list[float], Any]:
        losses = [record["loss"] for record in read_log(folder / "log.jsonl") if record["kind"] == "train"]
        return losses, checkpoint.load(checkpoint.checkpoints(folder)[-1])

    losses, state = trained(finished)
    assert len(set(losses)) == len(losses) == 4
    for name, seed in (("same", ["--seed", "1"]), ("other", ["--seed", "2"]), ("drawn", [])):
        ended = launcher.run([*SMALL[:-2], *seed, str(images)], tmp_path / name)
        assert ended.codes == [EXIT_OK], ended.output
    again, other_state = trained(tmp_path / "same")
    assert again == losses
    assert all(value.equal(other_state["state_dict"][name]) for name, value in state["state_dict"].items())
    assert not set(trained(tmp_path / "other")[0]) & set(losses)
    drawn = json.loads((tmp_path / "drawn/options.json").read_text())["seed"]
    assert isinstance(drawn, int) and drawn != 1


def test_photos_without_classes_are_enough_to_pretrain(launcher: Launcher, tmp_path: Path) -> None:
    photos = write_images(tmp_path / "data", train=10, val=0)
    ended = launcher.run([*SMALL, str(photos / "train/dark")], tmp_path / "run")
    assert ended.codes == [EXIT_OK], ended.output
    assert "no val split: training goes without online evaluation" in ended.output
    state = checkpoint.load(checkpoint.checkpoints(tmp_path / "run")[-1])
    assert set(state["moco_run"]["queue_state"]["labels"].tolist()) == {-1}
    ended = launcher.run([*SMALL, "--loss", "supcon", str(photos / "train/dark")], tmp_path / "supcon")
    assert_refused(ended, "--loss supcon compares labels, but these images have none")


def test_goes_on_with_the_next_epochs(launcher: Launcher, images: Path, finished: Path, tmp_path: Path) -> None:
    """From a file given by name, into another folder; the schedule is that of the epochs asked for now."""
    words = [*SMALL, "--epochs", "3", "--resume", str(checkpoint.checkpoints(finished)[-1]), str(images)]
    ended = launcher.run(words, tmp_path / "run")
    assert ended.codes == [EXIT_OK], ended.output
    train = [record for record in read_log(tmp_path / "run/log.jsonl") if record["kind"] == "train"]
    assert [record["global_step"] for record in train] == [5, 6]
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "run")] == ["checkpoint_0002.pth.tar"]
    assert "--epochs was 2 and is 3 from here on" in ended.output


# -- as commands -------------------------------------------------------------------------------------------------------


def command(*words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)


def test_dry_run_prints_the_options_and_leaves_nothing(tmp_path: Path) -> None:
    words = ["--dry-run", "--loss", "align-uniform", "--output-dir", str(tmp_path / "run"), "absent"]
    done = command("main_moco.py", *words)
    assert done.returncode == EXIT_OK and done.stderr == ""
    options = json.loads(done.stdout)
    assert (options["moco_align_w"], options["data"], options["arch"]) == (3.0, "absent", "resnet50")
    assert list(tmp_path.iterdir()) == []


def test_under_torchrun(images: Path, tmp_path: Path) -> None:
    """As in the README, and its one-process equal: the same samples, the same first loss (BatchNorm apart, they
    differ by
    rounding from then on)."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "main_moco.py"]
    words = [*SMALL, "--bn", "local", "--lr", "1e-9", "--epochs", "1", "-b", "9", str(images)]
    done = command(*torchrun, *words, "--output-dir", str(tmp_path / "two"))
    assert done.returncode == EXIT_OK, done.stderr
    assert done.stdout.count("output in") == 1
    assert checkpoint.load(checkpoint.checkpoints(tmp_path / "two")[0])["epoch"] == 1


# -- bad input ---------------------------------------------------------------------------------------------------------


def assert_refused(ended: Ended, told: str, code: int = EXIT_INPUT) -> None:
    """One sentence, once, whatever the number of ranks."""
    assert ended.codes == [code] * len(ended.codes), ended.output
    errors = [line for line in ended.output.splitlines() if "error" in line.lower()]
    assert len(errors) == 1 and errors[0].startswith("error: "), ended.output
    assert told in errors[0], errors[0]
    assert "Traceback" not in ended.output


def no_train(folder: Path) -> list[str]:
    (folder / "data/val/a").mkdir(parents=True)
    return [str(folder / "data")]


def empty_class(folder: Path) -> list[str]:
    data = write_images(folder / "data")
    (data / "train/empty").mkdir()
    return [str(data)]


def other_classes(folder: Path) -> list[str]:
    data = write_images(folder / "data")
    (data / "val/dark").rename(data / "val/grey")
    return [str(data)]


def no_image_at_all(folder: Path) -> list[str]:
    (folder / "data/train").mkdir(parents=True)
    return [str(folder / "data")]


def few_images(folder: Path) -> list[str]:
    return [str(write_images(folder / "data", train=3))]


DATA: list[tuple[Callable[[Path], list[str]] | str, str]] = [
    ("absent", "there is no folder absent"),
    ("", "say where the images are"),
    (no_train, "train: expected"),
    (no_image_at_all, "there are no images in"),
    (empty_class, "no image in 1 of the 3 classes"),
    (other_classes, "only train has dark; only val has grey"),
    (few_images, "6"),
]
WORDS = [
    ("-a resnet81_small", "resnet18_small"),
    ("-a resnet51", "did you mean "),
    ("-a timm:resnet999", "unknown --arch 'timm:resnet999'"),
    ("-a smallalexnet --image-size 16", "--image-size"),
    ("--moco-k 0 --loss hcl", "--loss hcl takes its negatives from the queue, so --moco-k must be at least 1"),
    ("--moco-k -1", "--moco-k must be at least 0"),
    ("--moco-t 0", "--moco-t must be greater than 0"),
    ("--moco-t -0.2", "--moco-t must be greater than 0"),
    ("--bn sync", "--bn sync needs a GPU"),
    ("--resume absent.pth.tar", "there is no checkpoint absent.pth.tar"),
    ("--init-from absent.pth.tar", "absent.pth.tar"),
    ("--loader ffcv", "write one with"),
    ("--gpu 0", "torchrun --nproc_per_node=8"),
    ("--batch-sizes 3", "did you mean --batch-size"),
    ("--config absent.yaml", "cannot read --config absent.yaml"),
]


@pytest.mark.parametrize(("data", "told"), DATA)
def test_bad_data(launcher: Launcher, tmp_path: Path, data: Callable[[Path], list[str]] | str, told: str) -> None:
    words = data(tmp_path) if callable(data) else data.split()
    ended = launcher.run([*SMALL, *words], tmp_path / "run")
    assert_refused(ended, told)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("words", "told"), WORDS)
def test_bad_options(launcher: Launcher, images: Path, tmp_path: Path, words: str, told: str) -> None:
    ended = launcher.run([*SMALL, *words.split(), str(images)], tmp_path / "run")
    assert_refused(ended, told)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(launcher: Launcher, images: Path, tmp_path: Path) -> None:
    assert_refused(launcher.run([*SMALL, "--device", "cuda", str(images)], tmp_path / "run"), "pass --device cpu")


@pytest.mark.parametrize("words", ["-a resnet51", "--resume absent.pth.tar", "--bn sync"])
def test_bad_options_are_told_once_by_several_ranks(
    launcher: Launcher, images: Path, tmp_path: Path, words: str
) -> None:
    ended = launcher.run([*SMALL, *words.split(), str(images)], tmp_path / "run", world=2)
    assert_refused(ended, words.split()[-1])
    assert not (tmp_path / "run").exists()


def truncated(finished: Path, folder: Path) -> Path:
    (folder / "cut.pth.tar").write_bytes(checkpoint.checkpoints(finished)[-1].read_bytes()[:-2000])
    return folder / "cut.pth.tar"


def empty(finished: Path, folder: Path) -> Path:
    (folder / "empty.pth.tar").touch()
    return folder / "empty.pth.tar"


def some_text(finished: Path, folder: Path) -> Path:
    (folder / "notes.pth.tar").write_text("not a checkpoint\n" * 100)
    return folder / "notes.pth.tar"


def an_encoders_weights(finished: Path, folder: Path) -> Path:
    torch.save(build_encoder("smallcnn", 8).state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


def a_list(finished: Path, folder: Path) -> Path:
    torch.save([1, 2], folder / "list.pth")
    return folder / "list.pth"


def code_to_run(finished: Path, folder: Path) -> Path:
    torch.save({"state_dict": {}, "epoch": subprocess.run}, folder / "evil.pth")
    return folder / "evil.pth"


def good(finished: Path, folder: Path) -> Path:
    return checkpoint.checkpoints(finished)[-1]


@pytest.mark.parametrize(
    ("make", "words", "told"),
    [
        (truncated, "", "cut.pth.tar is "),
        (empty, "", "empty.pth.tar is empty; use an earlier checkpoint"),
        (some_text, "", "notes.pth.tar"),
        (an_encoders_weights, "", "weights.pth is not a MoCo run's checkpoint"),
        (a_list, "", "list.pth holds a list, not a checkpoint"),
        (code_to_run, "", "evil.pth"),
        (lambda finished, folder: folder, "", "cannot read the checkpoint"),
        (good, "-a resnet18_small", "holds a smallcnn, not a resnet18_small; pass --arch smallcnn"),
        (good, "--moco-dim 16", "was trained with --moco-dim 8 --moco-k 21; pass the same"),
        (good, "--moco-k 22", "was trained with --moco-dim 8 --moco-k 21; pass the same"),
        (good, "--mlp", "does not fit this model (arch, --mlp, --moco-mlp-layers, --predictor?)"),
    ],
)
def test_bad_checkpoints(
    launcher: Launcher,
    images: Path,
    finished: Path,
    tmp_path: Path,
    make: Callable[[Path, Path], Path],
    words: str,
    told: str,
) -> None:
    path = make(finished, tmp_path)
    ended = launcher.run([*SMALL, "--resume", str(path), *words.split(), str(images)], tmp_path / "run")
    assert_refused(ended, told)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("world", [1, 2])
def test_unreadable_image(launcher: Launcher, tmp_path: Path, world: int) -> None:
    """Named, by the rank that met it; or left out and counted."""
    data = write_images(tmp_path / "data")
    bad = data / "train/bright/4.png"
    bad.write_bytes(bad.read_bytes()[:60])
    ended = launcher.run([*SMALL, str(data)], tmp_path / "run", world=world, grace=5)
    told = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert EXIT_INPUT in ended.codes and "Traceback" not in ended.output
    assert len(told) == 1 and str(bad) in told[0] and "--skip-bad-images" in told[0]
    assert checkpoint.checkpoints(tmp_path / "run") == []

    ended = launcher.run([*SMALL, "--skip-bad-images", str(data)], tmp_path / "skipped", world=world)
    assert ended.codes == [EXIT_OK] * world, ended.output
    assert len(checkpoint.checkpoints(tmp_path / "skipped")) == 2
    assert f"cannot be read, each replaced by the next one: 1, such as {bad} (" in ended.output
    warnings = [r["message"] for r in read_log(tmp_path / "skipped/log.jsonl") if r["kind"] == "warning"]
    assert sum(str(bad) in message for message in warnings) == 1, "once, not in every epoch"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_that_holds_a_run_is_not_written_over(launcher: Launcher, images: Path, finished: Path) -> None:
    before = contents(finished)
    ended = launcher.run([*SMALL, str(images)], finished)
    told = f"{finished} already holds a run; pass --resume auto to go on with it, or another --output-dir"
    assert_refused(ended, told)
    assert contents(finished) == before


@pytest.mark.parametrize("world", [1, 2])
def test_a_folder_in_use_is_left_alone(launcher: Launcher, images: Path, tmp_path: Path, world: int) -> None:
    folder = tmp_path / "run"
    lock = RunLock(folder)
    lock.acquire()
    try:
        before = contents(folder)
        ended = launcher.run([*SMALL, str(images)], folder, world=world)
        assert_refused(ended, str(folder))
        assert contents(folder) == before
    finally:
        lock.release()


@pytest.mark.parametrize("world", [1, 2])
def test_nan_ends_the_run_and_keeps_the_last_good_checkpoint(
    launcher: Launcher, images: Path, tmp_path: Path, world: int
) -> None:
    folder = tmp_path / "run"
    words = [*SMALL, "--epochs", "1", str(images)]
    assert launcher.run(words, folder, world=world).codes == [EXIT_OK] * world
    (kept,) = checkpoint.checkpoints(folder)
    before = kept.read_bytes()
    words = [*SMALL, "--epochs", "3", "--lr", "1e38", "--resume", "auto", str(images)]
    ended = launcher.run(words, folder, world=world)
    # the first step with that rate is finite still, the one after it is not
    assert_refused(ended, "the gradient of step 4 is not finite", EXIT_NUMERICS)
    assert "the checkpoints before it are good" in ended.output
    assert checkpoint.checkpoints(folder) == [kept] and kept.read_bytes() == before
    (described,) = folder.glob("bad_step_*.json")
    record = json.loads(described.read_text())
    assert (record["epoch"], record["step"], len(record["indices"])) == (1, 1, 8)
    # and the run goes on from there, with sense
    ended = launcher.run([*SMALL, "--resume", "auto", str(images)], folder, world=world)
    assert ended.codes == [EXIT_OK] * world, ended.output
    assert [path.name for path in checkpoint.checkpoints(folder)] == [kept.name, "checkpoint_0001.pth.tar"]
