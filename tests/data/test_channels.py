"""Images of any number of channels and of any depth: the right bytes, the right crops, or a sentence."""

from __future__ import annotations

import contextlib
import functools
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from moco.data.augment import Augment
from moco.data.augment.recipes import Jitter, Recipe, View, find_recipe
from moco.data.beton.__main__ import main as beton
from moco.data.channels import BadImage, PixelFormat, pixel_format
from moco.data.datasets import open_split
from moco.data.folder import FolderSource
from moco.data.loader import Loader
from moco.data.sampler import Sampler
from moco.data.source import ArraySource
from moco.data.stats import channel_statistics, main as stats
from moco.errors import EXIT_INPUT, EXIT_OK, InputError

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # 12 bits in 16


def noise(*shape: int, most: int = 256, kind: Any = np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, most, shape).astype(kind)


def npy(path: Path, values: np.ndarray) -> None:
    np.save(path, values)


def pages(path: Path, values: np.ndarray) -> None:
    """A TIFF file with a page for each channel of [H, W, C]."""
    first, *others = [Image.fromarray(np.ascontiguousarray(page)) for page in np.moveaxis(values, 2, 0)]
    first.save(path, save_all=True, append_images=others)


def folder(where: Path, write: Callable[[Path, np.ndarray], None], name: str, *images: np.ndarray) -> Path:
    (where / "train" / "a").mkdir(parents=True, exist_ok=True)
    for number, values in enumerate(images):
        write(where / "train" / "a" / f"{number}{name}", values)
    return where


def opened(where: Path, channels: int, value_range: str | None = None) -> FolderSource:
    source = open_split(str(where), pixels=pixel_format(channels, value_range))
    assert isinstance(source, FolderSource)
    return source


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8: low becomes 0, high 255, what lies outside is clipped."""
    return np.floor((values.astype(float).clip(low, high) - low) * (255 / (high - low)) + 0.5).astype(np.uint8)


def save_grey(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(path)


# -- which values become which bytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("write", "name"), [(save_grey, ".png"), (save_grey, ".tif"), (npy, ".npy")])
def test_twelve_bits_keep_256_levels(write: Any, name: str, channels: int, tmp_path: Path) -> None:
    source = opened(folder(tmp_path, write, name, RAMP), channels)
    expected = np.repeat(scaled(RAMP, 0, 4095)[..., None], channels, axis=2)
    assert np.array_equal(source.decode(0), expected)
    assert len(np.unique(source.decode(0))) == 256


def test_a_value_range_is_the_same_for_all_files(tmp_path: Path) -> None:
    dark, bright = RAMP // 4, RAMP
    source = opened(folder(tmp_path, npy, ".npy", dark, bright), 1, "0,4095")
    assert np.array_equal(source.decode(0)[..., 0], scaled(dark, 0, 4095))
    assert np.array_equal(source.decode(1)[..., 0], scaled(bright, 0, 4095))
    clipped = opened(tmp_path, 1, "1000,2000").decode(1)
    assert np.array_equal(clipped[..., 0], scaled(bright, 1000, 2000))
    assert (clipped == 0).sum() > 900 and (clipped == 255).sum() > 900


def test_each_channel_has_its_own_range(tmp_path: Path) -> None:
    """A dim channel beside a bright one keeps its levels."""
    values = np.stack([RAMP * 16, RAMP // 16 + 7], axis=2)
    where = folder(tmp_path, npy, ".npy", values)
    own = opened(where, 2).decode(0)
    assert np.array_equal(own[..., 0], scaled(values[..., 0], 0, 65520))
    assert np.array_equal(own[..., 1], scaled(values[..., 1], 7, 262)) and len(np.unique(own[..., 1])) == 256
    typed = opened(where, 2, "0,65535,0,500").decode(0)
    assert np.array_equal(typed[..., 0], scaled(values[..., 0], 0, 65535))
    assert np.array_equal(typed[..., 1], scaled(values[..., 1], 0, 500))
    shared = opened(where, 2, "0,65535").decode(0)
    assert np.array_equal(shared[..., 1], scaled(values[..., 1], 0, 65535))


def test_ranges_of_three_channels_for_grey(tmp_path: Path) -> None:
    found = opened(folder(tmp_path, npy, ".npy", RAMP), 3, "0,4095,0,100,4000,4095").decode(0)
    for channel, (low, high) in enumerate([(0, 4095), (0, 100), (4000, 4095)]):
        assert np.array_equal(found[..., channel], scaled(RAMP, low, high))


@pytest.mark.parametrize("kind", [">u2", "<i4", "<i8", "<u8", "<f2", "<f4", ">f8"])
def test_numbers_of_any_kind(kind: str, tmp_path: Path) -> None:
    values = noise(9, 11, most=2000).astype(kind) - np.array(50).astype(kind)
    if "u" in kind:
        values = noise(9, 11, most=2000, kind=kind)
    assert np.array_equal(
        opened(folder(tmp_path, npy, ".npy", values), 1, "-100,1900").decode(0)[..., 0], scaled(values, -100, 1900)
    )


def test_bytes_and_masks_are_taken_as_they_are(tmp_path: Path) -> None:
    values, mask = noise(5, 7, most=100), noise(5, 7, most=2, kind=bool)
    source = opened(folder(tmp_path, npy, ".npy", values, mask), 1, "0,1000")
    assert np.array_equal(source.decode(0)[..., 0], values)
    assert np.array_equal(source.decode(1)[..., 0], mask * 255)


def test_a_constant_picture_is_black(tmp_path: Path) -> None:
    assert not opened(folder(tmp_path, npy, ".npy", np.full((4, 4), 777, np.uint16)), 1).decode(0).any()


# -- where the channels are --------------------------------------------------------------------------------------------


def test_axes_of_an_array(tmp_path: Path) -> None:
    values = noise(6, 8, 5)
    inside = [values, np.moveaxis(values, 2, 0), np.asfortranarray(values)]
    source = opened(folder(tmp_path, npy, ".npy", *inside), 5)
    for index in range(3):
        assert source.size(index) == (6, 8)
        assert np.array_equal(source.decode(index), values)
    both = noise(5, 8, 5)  # the last axis counts
    assert np.array_equal(opened(folder(tmp_path / "both", npy, ".npy", both), 5).decode(0), both)
    grey = noise(6, 8, 1)
    assert np.array_equal(
        opened(folder(tmp_path / "grey", npy, ".npy", grey[..., 0], grey), 3).decode(1), grey.repeat(3, 2)
    )


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_pages_of_a_tiff_are_channels(count: int, kind: Any, tmp_path: Path) -> None:
    values = noise(20, 30, count, most=256 if kind == np.uint8 else 3000, kind=kind)
    found = opened(folder(tmp_path, pages, ".tif", values), count).decode(0)
    in_turn = np.moveaxis(values, 2, 0)
    expected = [page if kind == np.uint8 else scaled(page, page.min(), page.max()) for page in in_turn]
    assert np.array_equal(found, np.stack(expected, axis=2))


def bands(path: Path, values: np.ndarray, **how: Any) -> None:
    """A TIFF file with all channels of [H, W, C] in its page."""
    tifffile = pytest.importorskip("tifffile")
    separate = how.get("planarconfig") == "separate"
    tifffile.imwrite(path, np.moveaxis(values, 2, 0) if separate else values, **{"photometric": "minisblack", **how})


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(
    ("count", "how"),
    [
        (5, {"planarconfig": "contig"}),
        (5, {"planarconfig": "separate"}),
        (2, {"planarconfig": "contig"}),
        (4, {"photometric": "rgb", "extrasamples": ["unspecified"]}),
        (5, {"planarconfig": "contig", "compression": "zlib", "predictor": 2, "tile": (16, 16)}),
    ],
)
def test_bands_of_a_tiff_page(count: int, how: dict[str, Any], kind: Any, tmp_path: Path) -> None:
    if how.get("predictor") and kind == np.float32:
        how = how | {"predictor": 1}
    values = noise(20, 30, count, most=256, kind=kind)
    where = folder(tmp_path, functools.partial(bands, **how), ".tif", values)
    found = opened(where, count, "0,255").decode(0)
    assert np.array_equal(found, values.astype(np.uint8))
    with pytest.raises(BadImage, match=f"it has {count} channels, and --channels is 1"):
        opened(where, 1, "0,255").decode(0)


# a page of 8 x 8 pixels with five channels of 16 bits, uncompressed
_ENTRIES = [(256, 3, 8), (257, 3, 8), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 122), (277, 3, 5), (279, 4, 640)]
FIVE_BANDS = struct.pack("<2sHLH", b"II", 42, 8, len(_ENTRIES)) + b"".join(
    struct.pack("<HHLL", tag, kind, 1, value) for tag, kind, value in _ENTRIES
)


def test_bands_without_tifffile_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "0.tif").write_bytes(FIVE_BANDS + bytes(1000))
    with pytest.raises(BadImage, match="needs `pip install tifffile imagecodecs`"):
        opened(tmp_path, 5).open(0)


def test_rgb_takes_the_first_page_of_other_tiffs(tmp_path: Path) -> None:
    """Documents of several pages, and thumbnails behind a picture."""
    five, small = noise(20, 30, 5), noise(10, 15)
    source = opened(folder(tmp_path, pages, ".tif", five), 3)
    assert np.array_equal(source.decode(0), np.repeat(five[..., :1], 3, axis=2))
    first, *others = (Image.fromarray(page) for page in (five[..., 0], small, small))
    first.save(tmp_path / "train" / "a" / "0.tif", save_all=True, append_images=others)
    assert np.array_equal(source.decode(0), np.repeat(five[..., :1], 3, axis=2))


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_bands_of_a_picture(mode: str, channels: int, tmp_path: Path) -> None:
    picture = Image.fromarray(noise(12, 10, 4), "RGBA").convert(mode)
    (tmp_path / "train" / "a").mkdir(parents=True)
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise: as `picture`
    turned.save(tmp_path / "train" / "a" / "0.png", exif=exif)
    source = opened(tmp_path, channels)
    expected = np.asarray(picture.convert("L") if mode == "1" else picture).reshape(12, 10, channels)
    assert source.size(0) == (12, 10)
    assert np.array_equal(source.decode(0), expected)


def test_a_large_grey_jpeg_is_decoded_at_a_fraction(tmp_path: Path) -> None:
    where = folder(tmp_path, save_grey, ".jpg", np.asarray(Image.fromarray(noise(8, 8)).resize((400, 400))))
    source = opened(where, 1)
    picture = source.open(0)
    found = picture.decode(4)
    assert found.reduction == 4 and found.array.shape == (100, 100, 1)


# -- refused -----------------------------------------------------------------------------------------------------------


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_an_array_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    trap = np.empty(1, dtype=object)
    trap[0] = Trap(tmp_path / "sprung")
    where = folder(tmp_path, npy, ".npy", trap)
    with pytest.raises(BadImage, match="which could run code"):
        opened(where, 1).open(0)
    pickled = pickle.dumps(Trap(tmp_path / "sprung"))
    (where / "train" / "a" / "0.npy").write_bytes(pickled)  # a pickle under this name
    with pytest.raises(BadImage):
        opened(where, 1).open(0)
    assert not (tmp_path / "sprung").exists()


NAN = np.array([[0.0, np.nan], [1.0, np.inf]])
BAD_ARRAYS = [
    (NAN, 1, "0,1", "2 of its values are not finite"),
    (NAN, 1, None, "2 of its values are not finite"),
    (np.zeros((4, 4)), 1, None, "pass --value-range LOW,HIGH"),
    (np.zeros((4, 4), complex), 1, "0,1", "complex128, which are no pixels"),
    (np.zeros((4, 4), "U3"), 1, None, "<U3, which are no pixels"),
    (np.zeros((4, 4), "datetime64[s]"), 1, None, "no pixels"),
    (np.zeros((4, 4), [("x", "u1")]), 1, None, "records, which could run code"),
    (noise(7, 6, 5), 4, None, r"its shape is \[7, 6, 5\], and --channels is 4"),
    (noise(7, 6), 5, None, "it has 1 channel, and --channels is 5"),
    (noise(7), 1, None, r"its shape is \[7\]"),
    (noise(2, 2, 2, 2), 2, None, r"its shape is \[2, 2, 2, 2\]"),
    (np.zeros((0, 4), np.uint8), 1, None, "has no pixels"),
]


@pytest.mark.parametrize(("values", "channels", "value_range", "says"), BAD_ARRAYS)
def test_arrays_that_are_no_pictures(
    values: np.ndarray, channels: int, value_range: str | None, says: str, tmp_path: Path
) -> None:
    source = opened(folder(tmp_path, npy, ".npy", values), channels, value_range)
    with pytest.raises(BadImage, match=says):
        source.open(0).decode()


@pytest.mark.parametrize(
    ("mode", "channels", "says"),
    [
        ("RGB", 1, "it has 3 channels, and --channels is 1"),
        ("LA", 1, "it has 2 channels"),
        ("L", 5, "it has 1 channel,"),
        ("RGB", 4, "it has 3 channels"),
        ("RGBA", 5, "it has 4 channels"),
        ("P", 2, "it has 3 channels"),
    ],
)
def test_pictures_of_another_number_of_channels(mode: str, channels: int, says: str, tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.fromarray(noise(12, 10, 4), "RGBA").convert("RGB").convert(mode).save(tmp_path / "train" / "a" / "0.png")
    with pytest.raises(BadImage, match=says):
        opened(tmp_path, channels).decode(0)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_a_tiff_of_another_number_of_pages(channels: int, tmp_path: Path) -> None:
    where = folder(tmp_path, pages, ".tif", noise(8, 9, 4))
    with pytest.raises(BadImage, match=f"it has 4 pages of one channel, and --channels is {channels}"):
        opened(where, channels).decode(0)


@pytest.mark.filterwarnings("ignore")  # Pillow's, about damage
@pytest.mark.parametrize("name", [".npy", ".tif", "pages.tif"])
def test_damaged_files_are_bad_images(name: str, tmp_path: Path) -> None:
    """A whole file with bytes cut off or changed: values, or a bad image; never another error."""
    write = {".npy": npy, ".tif": bands, "pages.tif": pages}[name]
    where = folder(tmp_path, write, name, noise(8, 9, 2))
    path, generator, bad = next(where.rglob(f"*{name}")), np.random.default_rng(0), 0
    whole, source = path.read_bytes(), opened(where, 2)
    for trial in range(300):
        damaged = bytearray(whole)
        for at in generator.integers(0, min(256, len(whole)), 1 + trial % 3):
            damaged[at] = generator.integers(256)
        path.write_bytes(damaged[: generator.integers(len(whole))] if trial % 2 else damaged)
        try:
            source.open(0).decode()
        except BadImage:
            bad += 1
    assert bad > 100


def test_other_sources_say_what_they_hold(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has images of 3 channels: pass --channels 3"):
        open_split(None, "digits", pixels=PixelFormat(2))
    grey = open_split(None, "digits", pixels=PixelFormat(1))
    assert np.array_equal(grey.decode(5), open_split(None, "digits").decode(5)[..., :1])
    noted = open_split(None, "digits", pixels=pixel_format(3, "0,9"))
    assert any("--value-range changes nothing" in note for note in noted.notes)
    (tmp_path / "x.beton").touch()
    with pytest.raises(InputError, match="has 3 channels, as FFCV's image field always has"):
        open_split(str(tmp_path / "x.beton"), pixels=PixelFormat(5))


@pytest.mark.parametrize(
    ("name", "save", "channels"),
    [
        ("0.npy", lambda path: npy(path, np.zeros((9, 8, 5), np.uint16)), 5),
        ("0.npy", lambda path: npy(path, np.zeros((7, 9, 8), np.uint8)), 7),
        ("0.tif", lambda path: path.write_bytes(FIVE_BANDS + bytes(1000)), 5),
    ],
)
def test_a_beton_of_other_channels_is_refused_in_a_sentence(
    name: str, save: Callable[[Path], None], channels: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ffcv")
    where = tmp_path / "images" / "train" / "a"
    where.mkdir(parents=True)
    save(where / name)
    assert beton(["write", str(tmp_path / "images"), str(tmp_path / "x.beton"), "-j", "1"]) == EXIT_INPUT
    told = capsys.readouterr().err
    assert told == (
        f"error: {where / name} has {channels} channels, and FFCV's image field holds RGB of 8 bits: train from the"
        f" folder itself, with --channels {channels}\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 3), (3, 9, 8), (9, 8, 1), None])
def test_a_beton_of_grey_or_rgb_is_written(shape: tuple[int, ...] | None, tmp_path: Path) -> None:
    """Also of the first page of a document."""
    pytest.importorskip("ffcv")
    where = tmp_path / "images" / "train" / "a"
    where.mkdir(parents=True)
    if shape is None:
        pages(where / "0.tif", noise(9, 8, 4))
    else:
        npy(where / "0.npy", noise(*shape))
    assert beton(["write", str(tmp_path / "images"), str(tmp_path / "x.beton"), "-j", "1"]) == EXIT_OK


def test_a_beton_of_16_bits_has_the_folders_pixels(tmp_path: Path) -> None:
    pytest.importorskip("ffcv")
    where = folder(tmp_path / "images", save_grey, ".png", RAMP, RAMP // 4)
    npy(where / "train" / "a" / "2.npy", RAMP)
    words = ["write", str(where), str(tmp_path / "x.beton"), "--mode", "raw", "-j", "1", "--value-range", "0,4095"]
    assert beton(words) == EXIT_OK
    written, source = open_split(str(tmp_path / "x.beton"), labels_required=False), opened(where, 3, "0,4095")
    assert len(written) == 3
    for index in range(3):
        assert np.array_equal(written.decode(index), source.decode(index))


# -- crops and augmentations -------------------------------------------------------------------------------------------


def reference_crop(pixels: np.ndarray, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """Antialiased bilinear resampling in float64: a triangle as wide as the reduction, at the pixels' centres."""
    top, left, h, w = box
    region = pixels[top : top + h, left : left + w].astype(float)

    def matrix(there: int) -> np.ndarray:
        step = there / size
        wide = max(1.0, step)
        centres = (np.arange(size)[:, None] + 0.5) * step
        weights = np.maximum(0, 1 - np.abs(np.arange(there)[None] + 0.5 - centres) / wide)
        return weights / weights.sum(1, keepdims=True)

    return np.einsum("ih,hwc,jw->ijc", matrix(h), region, matrix(w))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
def test_crops_are_the_reference_channel_by_channel(channels: int, tmp_path: Path) -> None:
    images = [noise(40 + i, 50 - i, channels, seed=i) for i in range(6)]
    source = opened(folder(tmp_path, npy, ".npy", *images), channels)
    loader = Loader(source, Sampler(6, 6, 0), size=16, seed=3, workers=2)
    with contextlib.closing(loader.epoch(1)) as batches:
        batch = next(batches)
    assert batch.crops.shape == (6, 2, 16, 16, channels)
    for row, index in enumerate(batch.index.tolist()):
        draws = loader.draws(1, np.array([index]))[0]
        for view, box in enumerate(loader.boxes(draws, images[index].shape[:2])):
            expected = reference_crop(images[index], box, 16)
            assert np.abs(batch.crops[row, view].numpy() - expected).max() <= 1.5


def augmented(view: View, crops: np.ndarray, mean: float = 0.0, std: float = 1 / 255) -> np.ndarray:
    """[n, S, S, C] of what the view makes of crops, in [0, 255]."""
    channels = crops.shape[-1]
    recipe = Recipe("x", "", (view,)).for_channels(channels, (mean,) * channels, (std,) * channels)
    out = Augment(recipe, 7)(torch.from_numpy(crops), torch.arange(len(crops)), 2)
    assert out.shape == (len(crops), channels, *crops.shape[1:3])
    return out.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_flips_are_numpys(channels: int) -> None:
    crops = noise(40, 8, 8, channels)
    found = augmented(View(flip=0.5), crops)
    flipped = [np.array_equal(out, crop[:, ::-1]) for out, crop in zip(found, crops, strict=True)]
    kept = [np.array_equal(out, crop) for out, crop in zip(found, crops, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True)) and 10 < sum(flipped) < 30


def test_a_view_of_one_channel_is_rgbs_of_grey() -> None:
    """Crop, jitter of brightness and contrast, blur, solarize, flip, rotation: as of the same picture in RGB."""
    grey = noise(24, 16, 16, 1)
    jitter = Jitter(0.4, 0.4, p=0.8)
    view = View(rotation=15, jitter=jitter, blur=0.5, solarize=0.3, flip=0.5)
    one, three = augmented(view, grey), augmented(view, np.repeat(grey, 3, axis=3))
    assert np.abs(one - three[..., :1]).max() < 0.05 and np.abs(one - grey).mean() > 10


def test_brightness_and_contrast_of_five_channels() -> None:
    """Contrast is about each channel's own mean: as of each channel by itself."""
    crops = noise(16, 8, 8, 5) // np.array([1, 2, 4, 8, 16], np.uint8)
    view = View(jitter=Jitter(0.4, 0.6), blur=0.5)
    together = augmented(view, crops)
    for channel in range(5):
        alone = augmented(view, crops[..., channel : channel + 1])
        assert np.abs(together[..., channel : channel + 1] - alone).max() < 0.01


def test_hue_saturation_and_grey_are_for_rgb() -> None:
    recipe = find_recipe("v2", channels=5)
    assert len(recipe.mean) == 5
    for view in recipe.views:
        assert view.grayscale == 0 and view.jitter == Jitter(0.4, 0.4, 0.0, 0.0, p=0.8) and view.blur == 0.5
    assert find_recipe("v2", channels=3) == find_recipe("v2")
    assert find_recipe("digits", channels=1).mean == (0.306,) and find_recipe("v2", channels=1).mean == (0.5,)


def test_three_channels_that_are_no_colours() -> None:
    """Treated as five channels are: no colour operations, and contrast about each channel's own mean."""
    recipe = find_recipe("v2", rgb=False)
    assert recipe.mean == recipe.std == (0.5,) * 3 and recipe.views == find_recipe("v2", channels=5).views
    crops = torch.from_numpy(noise(16, 8, 8, 5) // np.array([1, 2, 4, 8, 16], np.uint8))
    first = crops[..., :3].contiguous()
    index = torch.arange(16)
    five = Augment(find_recipe("v2", channels=5), 3)(crops, index, 0)
    three = Augment(recipe, 3)(first, index, 0)
    assert (three - five[:, :3]).abs().max() < 1e-4
    rgb = Augment(find_recipe("v2", None, 3, recipe.mean, recipe.std), 3)(first, index, 0)
    assert (three - rgb).abs().mean() > 0.02


def test_normalisation_is_channel_by_channel() -> None:
    crops = noise(3, 4, 4, 5)
    mean, std = np.array([0.1, 0.2, 0.3, 0.4, 0.5]), np.array([0.5, 0.4, 0.3, 0.2, 0.1])
    recipe = find_recipe("eval", None, 5, mean.tolist(), std.tolist())
    out = Augment(recipe, 0)(torch.from_numpy(crops), torch.arange(3), 0).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(out, (crops / 255 - mean) / std, atol=1e-5)
    with pytest.raises(InputError, match=r"\[n, S, S, 5\]"):
        Augment(recipe, 0)(torch.from_numpy(crops[..., :3].copy()), torch.arange(3), 0)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    """As on the CPU, without waiting for the device."""
    crops, index = torch.from_numpy(noise(24, 32, 32, 5)), torch.arange(24)
    augment = Augment(find_recipe("byol", channels=5), 3)
    expected = augment(crops, index, 2, 1)
    on_gpu, index_there = crops.cuda(), index.cuda()
    augment(on_gpu, index_there, 2, 1)  # the constants travel once
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = augment(on_gpu, index_there, 2, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=2e-3)


# -- statistics --------------------------------------------------------------------------------------------------------


def test_statistics_are_numpys_and_go_into_the_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [noise(6 + i, 8, 2, most=100 * (i + 1), kind=np.uint16, seed=i) for i in range(7)]
    where = folder(tmp_path, npy, ".npy", *images)
    source = opened(where, 2, "0,700")
    values = [scaled(image, 0, 700) / 255 for image in images]
    mean = np.mean([v.mean((0, 1)) for v in values], axis=0)
    std = np.sqrt(np.mean([((v - mean) ** 2).mean((0, 1)) for v in values], axis=0))
    found = [channel_statistics(source, workers) for workers in (1, 3)]
    np.testing.assert_allclose(found[0][:2], (mean, std), rtol=1e-12)
    assert np.array_equal(found[0][0], found[1][0]) and np.array_equal(found[0][1], found[1][1])
    assert stats([str(where), "--channels", "2", "--value-range", "0,700"]) == EXIT_OK
    line = capsys.readouterr().out.splitlines()[-1]
    expected = [",".join(f"{value:.4g}" for value in numbers) for numbers in (mean, std)]
    assert line == f"--channels 2 --value-range=0,700 --mean {expected[0]} --std {expected[1]}"


def test_statistics_of_bad_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = folder(tmp_path, npy, ".npy", noise(4, 4), noise(4, 4, 5), noise(4, 4))
    assert stats([str(where), "--channels", "1"]) == EXIT_INPUT
    assert "1.npy: its shape is [4, 4, 5]" in capsys.readouterr().err
    assert stats([str(where), "--channels", "1", "--skip-bad-images"]) == EXIT_OK
    assert "2 images; for" in capsys.readouterr().out
    folder(tmp_path / "black", npy, ".npy", np.zeros((4, 4), np.uint8))
    assert stats([str(tmp_path / "black"), "--channels", "1"]) == EXIT_INPUT
    assert "channel 0 (of 0 to 0) is the same everywhere" in capsys.readouterr().err


def test_an_array_in_memory_knows_its_channels() -> None:
    assert ArraySource(noise(4, 8, 8, 5), np.zeros(4), ["a"], "x").channels == 5
