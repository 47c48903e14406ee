"""Made-up frames in the layouts of NYU-Depth-V2 and of folders of pairs: depth is 8 mm + 16 mm · blue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

HEIGHT, WIDTH = 48, 64
TRAIN, TEST = [1, 3, 5, 7], [2, 6]


def frame(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [H, W, 3], millimetres uint16 [H, W]) of a slope and a wave, of which no flip or shift looks alike."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    blue = 60 + 2 * x + 0.7 * y + 12 * np.sin(x / 9 + random.uniform(0, 6)) + random.uniform(-20, 20)
    colours = np.stack([255 * y / HEIGHT, 255 * x / WIDTH, blue], axis=-1).clip(0, 255).round().astype(np.uint8)
    return colours, (8 + 16 * colours[..., 2].astype(np.uint16)).astype(np.uint16)


def write_pairs(folder: Path, count: int, seed: int) -> Path:
    """PNGs without loss, of which a corner has no depth."""
    folder.mkdir(parents=True)
    for number in range(count):
        colours, depth = frame(100 * seed + number)
        depth[:10, :18] = 0
        Image.fromarray(colours).save(folder / f"{number:06d}.color.png")
        Image.fromarray(depth).save(folder / f"{number:06d}.depth.png")
    return folder


def write_nyu(folder: Path, old_splits: bool = True) -> Path:
    """nyu_depth_v2_labeled.mat as h5py sees MATLAB's v7.3, and splits.mat of either format."""
    import h5py

    folder.mkdir(parents=True)
    frames = [frame(number) for number in range(7)]
    images = np.stack([colours.transpose(2, 1, 0) for colours, _ in frames])
    depths = np.stack([(depth / 1000).astype(np.float32).T for _, depth in frames])
    depths[:, 0, 0] = np.nan
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        file["images"], file["depths"] = images, depths
    entries = {"trainNdxs": np.array(TRAIN, float)[:, None], "testNdxs": np.array(TEST, float)[:, None]}
    if old_splits:
        savemat(str(folder / "splits.mat"), entries)
    else:
        with h5py.File(folder / "splits.mat", "w", userblock_size=512) as file:
            for name, values in entries.items():
                file[name] = values.T
    return folder
