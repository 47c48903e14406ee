"""Bad input at scale, in real runs: a tree with every odd kind of image in it, and with images that cannot be read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moco.errors import EXIT_INPUT
from tests.reliability.conftest import Tally
from tests.reliability.runs import Launcher

SETTINGS = """-a smallcnn --image-size 16 -b 8 --epochs 1 --moco-k 20 --moco-dim 8 --seed 5 -j 2 --no-tensorboard
    --eval-freq 0 --bn-group-size 4"""


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.fixture(scope="module")
def odd(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ordinary images, and beside them one of each odd kind that can be read; 57 images in all."""
    root = tmp_path_factory.mktemp("odd") / "tree"
    shutil.copytree(images, root)
    folder = root / "train" / "bright"
    Image.fromarray(noise(20, 30, 4), "CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(noise(20, 30)[..., 0]).save(folder / "grey.jpg")
    Image.fromarray(noise(20, 30)).quantize(16).save(folder / "palette.gif")
    Image.fromarray(noise(20, 30, 4)).save(folder / "transparent.png")
    Image.fromarray(noise(20, 30)[..., 0].astype(np.uint16) * 257).save(folder / "sixteen_bit.png")
    Image.fromarray(noise(1, 1)).save(folder / "one_pixel.png")
    Image.fromarray(np.kron(noise(30, 40), np.ones((100, 100, 1), dtype=np.uint8))).save(folder / "huge.jpg")
    Image.fromarray(noise(20, 30)).save(folder / "wrongly_named.jpg", "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(noise(20, 30)).save(folder / "rotated.jpg", exif=exif)
    (folder / "readme.txt").write_text("no image")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    return root


@pytest.mark.parametrize("world", [1, 2])
def test_every_odd_kind_of_image_is_trained_on(
    world: int, odd: Path, launcher: Launcher, tally: Tally, tmp_path: Path
) -> None:
    with tally("odd images") as attempt:
        attempt.times = 9
        ended = launcher.run([str(odd), *SETTINGS.split()], tmp_path / "run", world=world)
        assert not any(ended.codes), ended.output
        assert "57 images, 7 steps of 8" in ended.output


BAD = {"truncated": b"", "zero_bytes": b"", "text": b"<html>404 not found</html>"}


@pytest.mark.parametrize("kind", BAD)
def test_an_image_that_cannot_be_read_is_named_or_left_out(
    kind: str, odd: Path, launcher: Launcher, tally: Tally, tmp_path: Path
) -> None:
    root = tmp_path / "tree"
    shutil.copytree(odd, root)
    bad = root / "train" / "dark" / f"{kind}.jpg"
    content = BAD[kind]
    if kind == "truncated":
        Image.fromarray(noise(40, 40)).save(bad)
        content = bad.read_bytes()[:-400]
    bad.write_bytes(content)
    argv = [str(root), *SETTINGS.split(), "-b", "58"]  # one batch of all of them: the bad one is met
    with tally("bad images"):
        ended = launcher.run(argv, tmp_path / "run")
        assert ended.codes == [EXIT_INPUT], ended.output
        assert str(bad) in ended.output and "Traceback" not in ended.output
        assert not list((tmp_path / "run").glob("*.pth.tar"))

        ended = launcher.run([*argv, "--skip-bad-images"], tmp_path / "skipped")
        assert ended.codes == [0], ended.output
        assert "each replaced by the next one: 1, such as" in ended.output


def test_a_damaged_beton_is_found_before_training(
    beton: Path, tally: Tally, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from moco.data.beton.__main__ import main as beton_main

    assert beton_main(["verify", str(beton)]) == 0
    for side in beton.parent.iterdir():
        shutil.copy(side, tmp_path / side.name)
    path = tmp_path / beton.name
    whole = path.read_bytes()
    used = len(whole.rstrip(b"\0"))
    dice = np.random.default_rng(0)
    for position in [*dice.integers(0, used, 10).tolist(), None]:
        content = bytearray(whole)
        if position is None:
            del content[-5000:]
        else:
            content[position] ^= 1 << int(dice.integers(8))
        path.write_bytes(content)
        with tally("damaged beton"):
            assert beton_main(["verify", str(path)]) == EXIT_INPUT, position
            assert path.name in "".join(capsys.readouterr())
