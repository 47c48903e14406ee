"""Writes images of five channels and 12 bits for pretraining and probe.

    python examples/other_channels.py five                                       # writes five/train and five/val
    python -m moco.data.stats five --channels 5 --value-range 0,4095             # prints --mean and --std
    python main_moco.py five --channels 5 --value-range 0,4095 --mean M,M,M,M,M --std S,S,S,S,S -a smallcnn ...
    python main_lincls.py five --pretrained runs/.../checkpoint_0199.pth.tar     # the channels are in the checkpoint

The images are scikit-learn's digits, in files like those of a satellite's bands or a microscope's stains.
Each file is a .npy array [8, 8, 5]. Its channels are a bright, dim, inverted, smoothed and flipped scan.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.ndimage import uniform_filter
from sklearn.datasets import load_digits


def write(folder: Path, images: int | None = None) -> None:
    """Writes the digits to folder/<split>/<digit>/<number>.npy.

    Each file is uint16 [8, 8, 5] of 0 to 4095. Every seventh image is for val.
    images: number of images; None for all.
    """
    digits = load_digits()
    for number, (scan, digit) in enumerate(zip(digits.images[:images], digits.target[:images], strict=True)):
        bright = scan * 250
        channels = [bright, bright / 10, 4095 - bright, uniform_filter(bright, 3), bright[:, ::-1]]
        place = folder / ("val" if number % 7 == 0 else "train") / str(digit)
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{number}.npy", np.stack(channels, axis=2).astype(np.uint16))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
