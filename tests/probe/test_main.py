"""The probe end to end on made-up images: MoCo's protocol and files, resuming, two ranks, and every bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from moco.data.augment import Augment
from moco.data.augment.recipes import find_recipe
from moco.data.datasets import open_split
from moco.data.loader import Loader
from moco.data.sampler import Sampler
from moco.encoders import build_encoder, trunk
from moco.errors import EXIT_INPUT, EXIT_NUMERICS, EXIT_OK
from moco.probe import __main__ as main_lincls
from moco.probe.training import Probe
from moco.run import checkpoint
from moco.run.log import read_log

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("blue", "green", "red")


def write_images(folder: Path, classes: tuple[str, ...] = CLASSES, train: int = 7, val: int = 3) -> Path:
    """Noise with more of one colour per class."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for c, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = generator.integers(0, 130, (12, 12, 3))
                pixels[:, :, 2 - c % 3] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def pretrained_state(seed: int = 7) -> dict[str, Tensor]:
    """Weights with statistics, as a pretrained encoder has; its head gives 6 features."""
    torch.manual_seed(seed)
    encoder = build_encoder("smallcnn", 6)
    for _ in range(30):
        encoder(torch.randn(16, 3, 8, 8))
    return {name: value.detach().clone() for name, value in encoder.state_dict().items()}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as facebookresearch/moco writes it."""
    path = tmp_path_factory.mktemp("pretrained") / "checkpoint_0199.pth.tar"
    weights = {f"module.encoder_q.{name}": value for name, value in pretrained_state().items()}
    weights |= {f"module.encoder_k.{name}": torch.zeros_like(value) for name, value in pretrained_state().items()}
    weights["module.queue"] = torch.randn(6, 10)
    torch.save({"epoch": 200, "arch": "smallcnn", "state_dict": weights, "optimizer": {}}, path)
    return path


def arguments(data: Path, **flags: Any) -> list[str]:
    """--batch-size 8 of 21 images: two full batches and one of 5 each epoch."""
    given: dict[str, Any] = dict(image_size=8, batch_size=8, epochs=3, schedule=2, lr=2, seed=5, workers=1) | flags
    words = [str(data)]
    for name, value in given.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


def loaded(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def test_the_protocol_and_its_files(
    images: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_lincls.main(arguments(images, pretrained=pretrained, output_dir=tmp_path / "out")) == EXIT_OK
    said = capsys.readouterr().out
    assert "MoCo, " in said and "2 left out (fc.weight, fc.bias)" in said
    assert "learning rate 2 x 8/256 = 0.0625" in said
    last, best = loaded(tmp_path / "out/checkpoint.pth.tar"), loaded(tmp_path / "out/model_best.pth.tar")
    assert {"epoch", "arch", "state_dict", "best_acc1", "optimizer"} < last.keys()
    assert (last["epoch"], last["arch"]) == (3, "smallcnn")
    trunk_before = {f"module.{k}": v for k, v in pretrained_state().items() if not k.startswith("fc")}
    assert all(torch.equal(last["state_dict"][name], value) for name, value in trunk_before.items())
    assert last["state_dict"].keys() - trunk_before.keys() == {"module.fc.weight", "module.fc.bias"}
    assert last["state_dict"]["module.fc.weight"].shape == (3, 128)
    records = read_log(tmp_path / "out/log.jsonl")
    accuracies = [record["val_acc1"] for record in records if record["kind"] == "eval"]
    rates = [record["lr"] for record in records if record["kind"] == "train"]
    assert rates == pytest.approx([0.0625, 0.0625, 0.00625])  # one line per epoch, the drop at 2
    result = json.loads((tmp_path / "out/lincls.json").read_text())
    assert len(accuracies) == 3
    assert result["top1"] == accuracies[-1] > 50  # of three colours that stand out
    assert result["top5"] == 100  # of three classes
    assert result["best_top1"] == best["best_acc1"] == max(accuracies)
    assert result["best_epoch"] == best["epoch"] == accuracies.index(max(accuracies)) + 1
    assert (result["pretrained"], result["classes"]) == (str(pretrained), 3)
    assert f"top-1 {result['top1']:.2f}" in said

    resume = tmp_path / "out/checkpoint.pth.tar"
    assert main_lincls.main(arguments(images, resume=resume, evaluate=True, output_dir=tmp_path / "no")) == EXIT_OK
    assert f"top-1 {result['top1']:.2f}  top-5 100.00  (9 images)" in capsys.readouterr().out
    assert not (tmp_path / "no").exists()


def test_one_step_is_gradient_descent_on_the_mean_cross_entropy(images: Path, pretrained: Path, tmp_path: Path) -> None:
    flags = dict(pretrained=pretrained, batch_size=32, lr=4, epochs=1, output_dir=tmp_path / "out")
    assert main_lincls.main(arguments(images, **flags)) == EXIT_OK
    torch.manual_seed(5)
    encoder = build_encoder("smallcnn", 3, image_size=8)
    weight = torch.nn.init.normal_(encoder.fc.weight.detach(), std=0.01).double()  # type: ignore[union-attr, operator]
    encoder.load_state_dict({k: v for k, v in pretrained_state().items() if not k.startswith("fc")}, strict=False)
    recipe = find_recipe("v1").for_probe()
    source = open_split(str(images), "folder", "train")
    sampler = Sampler(len(source), 32, 5, drop_last=False)
    batches = Loader(source, sampler, size=8, views=1, scale=(0.08, 1), seed=5)
    (batch,) = batches.epoch(0)
    assert len(batch.index) == 21
    with torch.no_grad():
        x = trunk(encoder).eval()(Augment(recipe, 5)(batch.crops[:, 0], batch.index, 0)).double()
    residual = (x @ weight.T).softmax(1) - F.one_hot(batch.labels, 3)
    rate = 4 * 32 / 256
    state = loaded(tmp_path / "out/checkpoint.pth.tar")["state_dict"]
    weight -= rate * residual.T @ x / 21
    torch.testing.assert_close(state["module.fc.weight"].double(), weight, atol=1e-5, rtol=0)
    torch.testing.assert_close(state["module.fc.bias"].double(), -rate * residual.mean(0), atol=1e-5, rtol=0)


def test_a_resumed_probe_ends_as_one_that_was_never_cut(images: Path, pretrained: Path, tmp_path: Path) -> None:
    whole = arguments(images, pretrained=pretrained, output_dir=tmp_path / "whole")
    first = arguments(images, pretrained=pretrained, epochs=2, output_dir=tmp_path / "cut")
    rest = arguments(images, resume="auto", seed=None, output_dir=tmp_path / "cut")  # the trunk is in the checkpoint
    assert [main_lincls.main(words) for words in (whole, first, rest)] == [EXIT_OK] * 3
    a, b = (loaded(tmp_path / name / "checkpoint.pth.tar") for name in ("whole", "cut"))
    assert a["state_dict"].keys() == b["state_dict"].keys()
    assert all(torch.equal(value, b["state_dict"][name]) for name, value in a["state_dict"].items())
    assert (a["best_acc1"], a["moco_lincls"]["best_epoch"]) == (b["best_acc1"], b["moco_lincls"]["best_epoch"])
    kept = [
        [{k: v for k, v in record.items() if k != "timing"} for record in read_log(tmp_path / name / "log.jsonl")
         if record["kind"] != "start"]
        for name in ("whole", "cut")
    ]  # fmt: skip
    assert kept[0] == kept[1]


def test_mocos_own_classifier_goes_on(images: Path, pretrained: Path, tmp_path: Path) -> None:
    """Without our entry: no options, no best epoch."""
    assert main_lincls.main(arguments(images, pretrained=pretrained, epochs=1, output_dir=tmp_path / "a")) == EXIT_OK
    state = loaded(tmp_path / "a/checkpoint.pth.tar")
    del state["moco_lincls"]
    state["best_acc1"] = torch.tensor(101.0)  # a tensor there
    torch.save(state, tmp_path / "theirs.pth.tar")
    resume = arguments(images, resume=tmp_path / "theirs.pth.tar", epochs=2, output_dir=tmp_path / "b")
    assert main_lincls.main(resume) == EXIT_OK
    after = loaded(tmp_path / "b/checkpoint.pth.tar")
    assert (after["epoch"], after["best_acc1"]) == (2, 101)
    assert not (tmp_path / "b/model_best.pth.tar").exists()


def test_without_a_checkpoint_the_encoder_is_untrained_and_seeded(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        words = arguments(images, arch="smallcnn", epochs=1, seed=seed, output_dir=tmp_path / name)
        assert main_lincls.main(words) == EXIT_OK
        assert f"untrained encoder, drawn from --seed {seed}, with the BatchNorm" in capsys.readouterr().out
        states.append(loaded(tmp_path / name / "checkpoint.pth.tar")["state_dict"])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not torch.equal(states[0]["module.features.0.weight"], states[2]["module.features.0.weight"])


def test_options_come_from_the_pretraining_of_the_same_data_set(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = {"options": {"dataset": "folder", "image_size": 10, "recipe": "cifar"}}
    state = {f"module.encoder_q.{name}": value for name, value in pretrained_state().items()}
    path = tmp_path / "checkpoint_0001.pth.tar"
    checkpoint.save(path, {"epoch": 2, "arch": "smallcnn", "state_dict": state, "moco_run": run})
    words = arguments(images, pretrained=path, image_size=None, dry_run=True)
    assert main_lincls.main(words) == EXIT_OK
    options = json.loads(capsys.readouterr().out)
    assert (options["arch"], options["image_size"], options["recipe"]) == ("smallcnn", 10, "cifar")
    assert main_lincls.main([*words, "--dataset", "digits"]) == EXIT_OK
    options = json.loads(capsys.readouterr().out)
    assert (options["image_size"], options["recipe"]) == (32, "digits")


def test_a_trunk_that_changes_is_noticed(
    images: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = Probe.one_epoch

    def leaky(self: Probe, epoch: int) -> None:
        train(self, epoch)
        self.encoder.features[1].running_var.mul_(1.001)  # type: ignore[index, union-attr]

    monkeypatch.setattr(Probe, "one_epoch", leaky)
    words = arguments(images, pretrained=pretrained, output_dir=tmp_path / "out")
    assert main_lincls.main(words) == EXIT_NUMERICS
    assert "features.1.running_var changed" in capsys.readouterr().err
    assert not (tmp_path / "out/checkpoint.pth.tar").exists()


def test_a_loss_that_is_not_finite(
    images: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(images, pretrained=pretrained, momentum=1e9, lr=1e30, output_dir=tmp_path / "out")
    assert main_lincls.main(words) == EXIT_NUMERICS
    assert "smaller --lr" in capsys.readouterr().err
    assert not (tmp_path / "out/checkpoint.pth.tar").exists()


def truncated(source: Path, folder: Path) -> Path:
    path = folder / "truncated.pth.tar"
    path.write_bytes(source.read_bytes()[:-1000])
    return path


def foreign(source: Path, folder: Path) -> Path:
    torch.save({"generator.0.weight": torch.zeros(2, 2)}, folder / "gan.pth")
    return folder / "gan.pth"


def of_other_classes(source: Path, folder: Path) -> Path:
    """A classifier of two colours."""
    two = write_images(folder / "two", CLASSES[:2])
    assert main_lincls.main(arguments(two, pretrained=source, epochs=1, output_dir=folder / "probe2")) == EXIT_OK
    return folder / "probe2/checkpoint.pth.tar"


def without_val(images: Path, folder: Path) -> Path:
    (folder / "data/train/red").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(folder / "data/train/red/0.png")
    return folder / "data"


def other_classes_in_val(images: Path, folder: Path) -> Path:
    write_images(folder / "data", train=2, val=1)
    os.rename(folder / "data/val/red", folder / "data/val/pink")
    return folder / "data"


def unreadable(images: Path, folder: Path) -> Path:
    write_images(folder / "data", train=2, val=1)
    (folder / "data/train/red/0.png").write_bytes(b"no image")
    return folder / "data"


Make = Callable[[Path, Path], Path]  # (what is there, an empty folder) -> what to pass


@pytest.mark.parametrize(
    ("flags", "data", "says"),
    [
        ({"pretrained": "absent.pth.tar"}, None, "no checkpoint absent.pth.tar"),
        ({"pretrained": truncated}, None, "truncated.pth.tar is"),
        ({"pretrained": foreign, "arch": "smallcnn"}, None, "does not fit this encoder"),
        ({"pretrained": lambda source, _: source, "arch": "resnet18"}, None, "pass --arch smallcnn"),
        ({"resume": lambda source, _: source}, None, "pass it as --pretrained"),
        ({"resume": of_other_classes}, None, "trained on 2 classes, but the data has 3"),
        ({"evaluate": True, "arch": "smallcnn"}, None, "--resume"),
        ({"arch": "smallcn"}, None, "smallcnn"),
        ({"arch": "smallalexnet"}, None, "--image-size"),
        ({"arch": "smallcnn", "lr": 0}, None, "--lr must be greater than 0"),
        ({"arch": "smallcnn", "lars": True}, None, "unknown argument --lars"),
        ({"arch": "smallcnn"}, "absent", "absent"),
        ({"arch": "smallcnn"}, without_val, "val"),
        ({"arch": "smallcnn"}, other_classes_in_val, "pink"),
        ({"pretrained": lambda source, _: source}, unreadable, "0.png"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    flags: dict[str, Any],
    data: Make | str | None,
    says: str,
    images: Path,
    pretrained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = {name: value(pretrained, tmp_path) if callable(value) else value for name, value in flags.items()}
    folder = Path(data) if isinstance(data, str) else data(images, tmp_path) if data else images
    capsys.readouterr()
    code = main_lincls.main(arguments(folder, **flags, output_dir=tmp_path / "out"))
    error = capsys.readouterr().err
    assert code == EXIT_INPUT
    assert says in error
    assert error.startswith("error: ") and error.count("\n") == 1
    written = {path.name for path in (tmp_path / "out").glob("*")} if (tmp_path / "out").exists() else set()
    assert written <= {"log.jsonl"}  # an image is found to be unreadable when its turn comes


def test_a_folder_that_holds_a_probe_is_not_written_over(
    images: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(images, pretrained=pretrained, epochs=1, output_dir=tmp_path / "out")
    assert main_lincls.main(words) == EXIT_OK
    before = (tmp_path / "out/checkpoint.pth.tar").read_bytes()
    assert main_lincls.main(words) == EXIT_INPUT
    assert "--resume auto" in capsys.readouterr().err
    assert (tmp_path / "out/checkpoint.pth.tar").read_bytes() == before


def test_two_ranks_learn_what_one_learns(images: Path, pretrained: Path, tmp_path: Path) -> None:
    """Batches of 8, 8 and 5: the last is shared 3 to 2, and every sample weighs the same."""
    assert main_lincls.main(arguments(images, pretrained=pretrained, output_dir=tmp_path / "one")) == EXIT_OK
    words = arguments(images, pretrained=pretrained, output_dir=tmp_path / "two")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*torchrun, "main_lincls.py", *words], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = (loaded(tmp_path / name / "checkpoint.pth.tar") for name in ("one", "two"))
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, atol=1e-5, rtol=1e-5)
    results = [json.loads((tmp_path / name / "lincls.json").read_text()) for name in ("one", "two")]
    assert results[0]["top1"] == results[1]["top1"]
    assert results[1]["world_size"] == 2
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("one", "two")]
    losses = [[record["loss"] for record in log if record["kind"] == "epoch"] for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert done.stdout.count("top-1 ") == 1  # rank 0 speaks for all


def test_as_a_command(images: Path, tmp_path: Path) -> None:
    """Exit code and message as a shell sees them."""
    words = arguments(images, pretrained="absent.pth.tar", output_dir=tmp_path / "out")
    done = subprocess.run([sys.executable, "main_lincls.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == EXIT_INPUT
    assert done.stderr.splitlines()[-1].startswith("error: there is no checkpoint absent.pth.tar")
    assert not (tmp_path / "out").exists()
