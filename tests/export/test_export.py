"""Exports are the same function in the other library, or there is no export; what they tell comes back."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hubconf
from moco.encoders import build_encoder, trunk
from moco.encoders.files import read_encoder, read_trunk
from moco.encoders.preprocessing import Preprocessing
from moco.errors import EXIT_INPUT, EXIT_OK, InputError
from moco.export import detectron2 as detectron2_layout, formats
from moco.export.__main__ import compare, export, main, photographs, prepare
from moco.export.formats import FORMATS, Exported
from moco.run import checkpoint

SIZE = 32
OPTIONS = {"recipe": "cifar", "image_size": SIZE, "loss": "align-uniform", "data": "/secret/photos", "moco_t": 0.2}


def pretrained(path: Path, arch: str = "resnet18", **entries: Any) -> nn.Module:
    """A checkpoint of pretraining at `path`; its query encoder."""
    torch.manual_seed(0)
    net = build_encoder(arch, 8, mlp=True, image_size=SIZE)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
    weights = {f"module.encoder_q.{key}": value for key, value in net.state_dict().items()}
    run = {"format": 1, "options": OPTIONS, "git": "0123abc"}
    checkpoint.save(path, {"epoch": 7, "arch": arch, "state_dict": weights, "moco_run": run, **entries})
    return net.eval()


def probed(path: Path, classes: list[str], arch: str = "resnet18") -> nn.Module:
    """A checkpoint of the linear probe."""
    torch.manual_seed(0)
    net = build_encoder(arch, len(classes), image_size=SIZE)
    weights = {f"module.{key}": value for key, value in net.state_dict().items()}
    more = {"classes": classes, "options": {"recipe": "v1", "image_size": SIZE}}
    state = {"epoch": 3, "arch": arch, "state_dict": weights, "best_acc1": 50.0, "optimizer": {}, "moco_lincls": more}
    checkpoint.save(path, state)
    return net.eval()


def images(recipe: str = "cifar") -> torch.Tensor:
    return photographs(Preprocessing.of_run({"recipe": recipe, "image_size": SIZE}))


def test_metadata_tells_what_the_run_was_and_nothing_private(tmp_path: Path) -> None:
    pretrained(tmp_path / "checkpoint_0006.pth.tar")
    assert main([str(tmp_path / "checkpoint_0006.pth.tar"), "--to", "torchvision", "--licence", "mit"]) == EXIT_OK
    folder = tmp_path / "checkpoint_0006-torchvision"
    assert sorted(path.name for path in folder.iterdir()) == ["encoder.pth", "metadata.json"]
    text = (folder / "metadata.json").read_text()
    about = json.loads(text)
    assert "secret" not in text
    assert (about["arch"], about["feature_dim"], about["epoch"]) == ("resnet18", 512, 7)
    told = [about[name] for name in ("loss", "recipe", "git", "licence")]
    assert told == ["align-uniform", "cifar", "0123abc", "mit"]
    assert about["preprocessing"]["size"] == SIZE and about["options"]["moco_t"] == 0.2
    assert about["verified_by"].startswith("torchvision ") and about["difference"] <= 1e-5


@pytest.mark.parametrize("to", ["torchvision", "timm", "huggingface", "safetensors", "moco"])
def test_an_export_is_read_again_with_its_preprocessing(to: str, tmp_path: Path) -> None:
    net = pretrained(tmp_path / "checkpoint_0006.pth.tar")
    result = export(prepare(read_encoder(tmp_path / "checkpoint_0006.pth.tar")), to, tmp_path / "out")
    for path in (result.folder, result.file):
        again = read_trunk(path)
        assert again.preprocessing == Preprocessing.of_run(OPTIONS)
        with torch.no_grad():
            torch.testing.assert_close(again(images()), trunk(net)(images()))
    assert read_encoder(result.folder).epoch == 7


@pytest.mark.parametrize("to", ["torchvision", "timm", "huggingface", "safetensors"])
def test_the_probes_classifier_goes_along(to: str, tmp_path: Path) -> None:
    net = probed(tmp_path / "model_best.pth.tar", ["cat", "dog", "owl"])
    x = prepare(read_encoder(tmp_path / "model_best.pth.tar"))
    result = export(x, to, tmp_path / "out")
    network = FORMATS[to].reload(x, result.file)
    with torch.no_grad():
        assert torch.equal(network(images("v1")), net(images("v1")))
    if to == "huggingface":
        assert json.loads((tmp_path / "out" / "config.json").read_text())["label_names"] == ["cat", "dog", "owl"]
        assert "3 classes" in (tmp_path / "out" / "README.md").read_text()
    without = prepare(read_encoder(tmp_path / "model_best.pth.tar"), classifier=False)
    assert without.classes is None and not any(key.startswith("fc.") for key in without.state)


@pytest.mark.parametrize(
    ("arch", "to"),
    [
        ("timm:vit_tiny_patch16_224", "huggingface"),  # built for one size
        ("mobilenet_v3_small", "torchvision"),  # its classifier is classifier.3
        ("smallcnn", "safetensors"),
    ],
)
def test_other_networks(arch: str, to: str, tmp_path: Path) -> None:
    pretrained(tmp_path / "file", arch)
    assert export(prepare(read_encoder(tmp_path / "file")), to, tmp_path / "out").difference == 0


def test_the_model_card_has_no_foreign_merits(tmp_path: Path) -> None:
    """timm's own weights of the network have a licence, a paper and a tag, which are not these weights'."""
    pretrained(tmp_path / "file")
    export(prepare(read_encoder(tmp_path / "file"), licence="cc-by-4.0"), "huggingface", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    assert not {"tag", "license", "paper_ids", "origin_url"} & config.keys()
    assert config["input_size"] == [3, SIZE, SIZE]
    assert "license: cc-by-4.0" in (tmp_path / "out" / "README.md").read_text()


def test_onnx_takes_any_number_of_images_and_tells_no_paths(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = pretrained(tmp_path / "file", "smallcnn")
    result = export(prepare(read_encoder(tmp_path / "file")), "onnx", tmp_path / "out")
    session = runtime.InferenceSession(result.file, providers=["CPUExecutionProvider"])
    for n in (1, 5):
        found = session.run(None, {"images": images()[:n].numpy()})[0]
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), trunk(net)(images()[:n]), rtol=0, atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["moco"])["arch"] == "smallcnn"
    assert b"site-packages" not in result.file.read_bytes()


# Nothing is left behind


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("arch", "to", "says"),
    [
        ("resnet18_small", "torchvision", "torchvision has no resnet18_small"),
        ("smallcnn", "huggingface", "timm has no smallcnn"),
        ("smallcnn", "detectron2", "7 x 7 stem"),
        ("mobilenet_v2", "timm", "timm has no mobilenet_v2"),
    ],
)
def test_what_a_library_lacks_is_said(
    arch: str, to: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained(tmp_path / "file", arch)
    assert main([str(tmp_path / "file"), "--to", to]) == EXIT_INPUT
    assert says in capsys.readouterr().err
    assert left(tmp_path) == ["file"]


def test_another_function_is_no_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One BatchNorm statistic lost on the way."""
    pretrained(tmp_path / "file")
    x = prepare(read_encoder(tmp_path / "file"))
    names = detectron2_layout.torchvision_names

    def forgetful(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: value + 0.01 * (key == "layer1.0.bn2.running_mean") for key, value in names(state).items()}

    monkeypatch.setattr(detectron2_layout, "torchvision_names", forgetful)
    with pytest.raises(InputError, match=r"does not read it back \(its outputs differ by"):
        export(x, "detectron2", tmp_path / "out")
    assert left(tmp_path) == ["file"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(x: Exported, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    pretrained(tmp_path / "file")
    monkeypatch.setitem(FORMATS, "timm", formats.Format("encoder.pth", "timm", "", write, FORMATS["timm"].reload))
    with pytest.raises(InputError, match="No space left"):
        export(prepare(read_encoder(tmp_path / "file")), "timm", tmp_path / "out")
    assert left(tmp_path) == ["file"]


def test_an_interrupted_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reload(x: Exported, path: Path) -> Any:
        raise KeyboardInterrupt

    pretrained(tmp_path / "file")
    monkeypatch.setitem(FORMATS, "timm", formats.Format("encoder.pth", "timm", "", FORMATS["timm"].write, reload))
    with pytest.raises(KeyboardInterrupt):
        export(prepare(read_encoder(tmp_path / "file")), "timm", tmp_path / "out")
    assert left(tmp_path) == ["file"]


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    pretrained(tmp_path / "file")
    x = prepare(read_encoder(tmp_path / "file"))
    export(x, "moco", tmp_path / "out")
    with pytest.raises(InputError, match="exists already"):
        export(x, "safetensors", tmp_path / "out")
    assert left(tmp_path / "out") == ["encoder.pth.tar", "metadata.json"]


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    form = FORMATS["onnx"]
    needs = formats.Format(form.file, form.library, "", form.write, form.reload, ("onnx_of_tomorrow",))
    monkeypatch.setitem(FORMATS, "onnx", needs)
    pretrained(tmp_path / "file")
    with pytest.raises(InputError, match="pip install onnx_of_tomorrow"):
        export(prepare(read_encoder(tmp_path / "file")), "onnx", tmp_path / "out")


def test_arch_must_be_known(tmp_path: Path) -> None:
    net = pretrained(tmp_path / "file")
    torch.save(net.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(InputError, match="pass --arch"):
        prepare(read_encoder(tmp_path / "bare.pth"))
    assert prepare(read_encoder(tmp_path / "bare.pth"), arch="resnet18", image_size=SIZE).preprocessing.size == SIZE


def test_compare_sees_shapes_and_numbers(tmp_path: Path) -> None:
    pretrained(tmp_path / "file", "smallcnn")
    x = prepare(read_encoder(tmp_path / "file"))
    assert compare(x, x.network, images()) == 0
    with pytest.raises(ValueError, match="outputs are"):
        compare(x, lambda pictures: x.network(pictures)[:, :5], images())
    with pytest.raises(ValueError, match="differ by nan"):
        compare(x, lambda pictures: x.network(pictures) * float("nan"), images())


# detectron2's pickle


def test_detectron2s_names() -> None:
    """As its own tools write them: stem, res2 to res5, norms inside convolutions, the shortcut."""
    state = trunk(build_encoder("resnet50", 1)).state_dict()
    names = detectron2_layout.detectron2_names(state)
    assert {"stem.conv1.weight", "stem.conv1.norm.running_var", "res2.0.conv3.norm.weight"} <= names.keys()
    assert {"res3.0.shortcut.weight", "res3.0.shortcut.norm.bias", "res5.2.conv2.weight"} <= names.keys()
    assert len(names) == 265  # 53 convolutions, each with a norm of four tensors
    back = detectron2_layout.torchvision_names(names)
    assert all(torch.equal(value, state[key]) for key, value in back.items()) and len(back) == 265


def test_the_pickle_calls_nothing_but_numpy(tmp_path: Path) -> None:
    detectron2_layout.write(tmp_path / "file.pkl", {"conv1.weight": torch.randn(2, 3, 7, 7)}, "author")
    content = pickle.loads((tmp_path / "file.pkl").read_bytes())  # our own file: as detectron2 opens it
    assert content["matching_heuristics"] is True and content["__author__"] == "author"
    assert content["model"]["stem.conv1.weight"].shape == (2, 3, 7, 7)
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": Path("x")}))
    with pytest.raises(pickle.UnpicklingError, match="is no array"):
        detectron2_layout.read(tmp_path / "evil.pkl")


# torch.hub


def test_hub(tmp_path: Path) -> None:
    net = pretrained(tmp_path / "file")
    root = Path(hubconf.__file__).parent
    network: Any = torch.hub.load(str(root), "encoder", source="local", checkpoint=str(tmp_path / "file"))
    with torch.no_grad():
        assert torch.equal(network(images()), trunk(net)(images()))
    assert not network.training
    torch.save(net.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(InputError, match="pass its arch"):
        hubconf.encoder(str(tmp_path / "bare.pth"))


# A run that starts from it


def test_init_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import main_moco

    net = pretrained(tmp_path / "file", "smallcnn")
    flags = "--dataset digits -a smallcnn --moco-dim 8 --moco-k 64 -b 1024 --epochs 1 --lr 1e-9 --eval-freq 0 --seed 0"
    command = [*flags.split(), "--no-tensorboard", "--output-dir", str(tmp_path / "run")]
    assert main_moco.main([*command, "--init-from", str(tmp_path / "file")]) == EXIT_OK
    assert "tensors of the trunk loaded, 4 left out" in capsys.readouterr().out
    state = checkpoint.load(tmp_path / "run" / "checkpoint_0000.pth.tar")["state_dict"]
    for key, value in trunk(net).state_dict().items():
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(state[f"module.encoder_q.{key}"], value, rtol=0, atol=1e-6)
            torch.testing.assert_close(state[f"module.encoder_k.{key}"], value, rtol=0, atol=1e-6)
    # what goes on goes on from its own weights
    assert main_moco.main([*command, "--init-from", "/no/such/file", "--resume", "auto"]) == EXIT_OK


def test_init_from_another_network_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import main_moco

    pretrained(tmp_path / "file", "resnet18_small")
    flags = f"--dataset digits -a smallcnn -b 64 --output-dir {tmp_path}/run --init-from {tmp_path}/file --eval-freq 0"
    assert main_moco.main(flags.split()) == EXIT_INPUT
    assert "says resnet18_small" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
