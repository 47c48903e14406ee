"""First convolutions for any number of channels, new ones and those of weights that were trained on RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from moco.encoders import build_encoder, input_channels, trunk
from moco.encoders.files import load_trunk, read_encoder, read_trunk
from moco.encoders.preprocessing import with_images_of
from moco.errors import EXIT_INPUT, EXIT_OK, InputError
from moco.evaluate.layers import FeatureMaps, Layers
from moco.export.__main__ import main as export
from moco.probe.options import LinclsOptions
from moco.run import checkpoint

SIZE = 32


def saved(path: Path, channels: int, arch: str = "resnet18", **options: object) -> nn.Module:
    """A checkpoint of pretraining; its encoder, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = build_encoder(arch, 8, image_size=SIZE, channels=channels)
    weights = {f"module.encoder_q.{key}": value for key, value in encoder.state_dict().items()}
    told = {"image_size": SIZE, "recipe": "v1", "dataset": "folder", "channels": channels} | options
    checkpoint.save(path, {"epoch": 1, "arch": arch, "state_dict": weights, "moco_run": {"options": told}})
    return encoder.eval()


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize(
    "arch",
    ["resnet18", "resnet18_small", "smallcnn", "mobilenet_v3_small", "timm:resnet10t", "timm:vit_tiny_patch16_224"],
)
def test_networks_take_any_number_of_channels(arch: str, channels: int) -> None:
    encoder = build_encoder(arch, 7, image_size=SIZE, channels=channels).eval()
    assert input_channels(encoder) == input_channels(trunk(encoder)) == channels
    assert encoder(torch.zeros(2, channels, SIZE, SIZE)).shape == (2, 7)
    three = build_encoder(arch, 7, image_size=SIZE)
    first, usual = (next(m for m in net.modules() if isinstance(m, nn.Conv2d)) for net in (encoder, three))
    assert first.in_channels == channels and usual.in_channels == 3
    assert (first.stride, first.padding, first.kernel_size) == (usual.stride, usual.padding, usual.kernel_size)
    names = [name for name, value in three.state_dict().items() if value.shape != encoder.state_dict()[name].shape]
    assert len(names) == 1 and list(three.state_dict()) == list(encoder.state_dict())


def test_a_new_first_convolution_gives_outputs_of_the_usual_size() -> None:
    torch.manual_seed(0)
    usual = build_encoder("resnet18", 7).conv1(torch.randn(8, 3, 64, 64)).std()
    for channels in (1, 12):
        wide = build_encoder("resnet18", 7, channels=channels).conv1(torch.randn(8, channels, 64, 64)).std()
        assert 0.8 < wide / usual < 1.25


def test_weights_of_rgb_for_one_channel_see_grey_as_before(tmp_path: Path) -> None:
    there = saved(tmp_path / "c.pth.tar", 3)
    encoder = build_encoder("resnet18", 8, channels=1).eval()
    loaded = load_trunk(encoder, read_encoder(tmp_path / "c.pth.tar"))
    assert "conv1.weight for 1 channels: the sum over RGB" in str(loaded)
    grey = torch.randn(2, 1, SIZE, SIZE)
    torch.testing.assert_close(trunk(encoder)(grey), trunk(there)(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ["resnet18", "timm:resnet10t"])
def test_weights_of_rgb_for_five_channels_are_timms(arch: str, tmp_path: Path) -> None:
    there = saved(tmp_path / "c.pth.tar", 3, arch)
    encoder = build_encoder(arch, 8, channels=5)
    assert "RGB repeated, times 3/5" in str(load_trunk(encoder, read_encoder(tmp_path / "c.pth.tar")))
    rgb, five = (next(m for m in net.modules() if isinstance(m, nn.Conv2d)).weight for net in (there, encoder))
    for channel in range(5):
        torch.testing.assert_close(five[:, channel], rgb[:, channel % 3] * 3 / 5)


@pytest.mark.parametrize(("there", "here"), [(5, 4), (1, 3), (5, 3)])
def test_other_weights_are_refused(there: int, here: int, tmp_path: Path) -> None:
    saved(tmp_path / "c.pth.tar", there)
    with pytest.raises(InputError, match=rf"conv1.weight is \[64, {there}, 7, 7\] in the file.*--arch and --channels"):
        load_trunk(build_encoder("resnet18", 8, channels=here), read_encoder(tmp_path / "c.pth.tar"))


def test_a_network_that_is_built_for_rgb_says_so() -> None:
    with pytest.raises(InputError, match="px and 5 channels: change --image-size"):
        build_encoder("tests.encoders.test_channels:rgb_only", 4, image_size=SIZE, channels=5)


class Rgb(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.mean((2, 3)))


def rgb_only(num_classes: int) -> nn.Module:
    return Rgb()


def test_the_checkpoint_tells_the_images() -> None:
    run = {"channels": 2, "value_range": "0,9", "mean": ".1,.2", "std": ".3,.4", "dataset": "folder"}
    found = with_images_of(LinclsOptions(), run)
    assert (found.channels, found.value_range, found.mean, found.std) == (2, "0,9", ".1,.2", ".3,.4")
    typed = with_images_of(LinclsOptions(value_range="0,7", mean="0,0", std="1,1"), run)
    assert (typed.channels, typed.value_range, typed.mean, typed.std) == (2, "0,7", "0,0", "1,1")
    other = with_images_of(LinclsOptions(channels=1), run)
    assert (other.channels, other.value_range, other.mean, other.std) == (1, None, None, None)
    assert with_images_of(LinclsOptions(), {}).channels == 3
    elsewhere = with_images_of(LinclsOptions(dataset="cifar10"), run | {"channels": 3, "mean": ".1,.1,.1"})
    assert (elsewhere.channels, elsewhere.mean) == (3, None)  # of RGB the recipe of the data set, as before


def test_preprocessing_of_two_channels(tmp_path: Path) -> None:
    saved(tmp_path / "c.pth.tar", 2, value_range="0,1000", mean="0.5,0.25", std="0.5,0.5")
    network = read_trunk(tmp_path / "c.pth.tar")
    values = np.stack([np.full((40, 40), 500.0), np.full((40, 40), 1000.0)], axis=2)
    prepared = network.preprocessing(values)
    assert prepared.shape == (2, SIZE, SIZE)
    torch.testing.assert_close(prepared[:, 0, 0], torch.tensor([(128 / 255 - 0.5) / 0.5, 1.5]))
    picture = Image.fromarray(np.full((40, 40, 2), 255, np.uint8), "LA")
    torch.testing.assert_close(network.preprocessing(picture)[:, 3, 3], torch.tensor([1.0, 1.5]))
    assert network(prepared[None]).shape == (1, 512)


@pytest.mark.parametrize("to", ["timm", "huggingface", "safetensors"])
def test_exports_of_five_channels(to: str, tmp_path: Path) -> None:
    """Each is read back by its own library and compared."""
    mean, std = ",".join(["0.5"] * 5), ",".join(["0.2"] * 5)
    there = saved(tmp_path / "c.pth.tar", 5, mean=mean, std=std)
    assert export([str(tmp_path / "c.pth.tar"), "--to", to, "--output-dir", str(tmp_path / "out")]) == EXIT_OK
    if to == "safetensors":
        network = read_trunk(tmp_path / "out")
        images = torch.randn(2, 5, SIZE, SIZE)
        torch.testing.assert_close(network(images), trunk(there)(images))


@pytest.mark.parametrize("to", ["torchvision", "detectron2", "moco"])
def test_exports_that_have_three_channels_only(to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "c.pth.tar", 5, mean="0,0,0,0,0", std="1,1,1,1,1")
    assert export([str(tmp_path / "c.pth.tar"), "--to", to, "--output-dir", str(tmp_path / "out")]) == EXIT_INPUT
    assert "images of 3 channels, and this encoder has 5: take --to timm, safetens" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_layers_and_maps_of_five_channels() -> None:
    encoder, images = build_encoder("smallcnn", 8, channels=5), torch.randn(2, 5, SIZE, SIZE)
    layers, maps = Layers(encoder, ["trunk", "output"], SIZE), FeatureMaps(encoder, "features.3", SIZE)
    assert layers(images).shape == (2, 128 + 8) and maps(images).shape == (2, 64, SIZE // 4, SIZE // 4)
