#!/usr/bin/env python
"""Finds the photographs of a folder that look like a given one.

    python examples/retrieval.py runs/photos/checkpoint_0005-safetensors photos/train --query photos/train/flower-03.jpg

The similarity is the cosine of an encoder's features.
Prints names and similarities, and with `--output` draws the query and its neighbours side by side.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from moco.data.folder import FolderSource
from moco.encoders.files import read_trunk


@torch.no_grad()
def main(argv: list[str] | None = None) -> list[str]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("encoder", help="what moco.export wrote, or any checkpoint")
    parser.add_argument("folder", help="the photographs to search")
    parser.add_argument("--query", required=True, help="a photograph")
    parser.add_argument("--count", type=int, default=6, help="of neighbours (%(default)s)")
    parser.add_argument("--output", type=Path, help="picture of the query and its neighbours")
    arguments = parser.parse_args(argv)

    encoder = read_trunk(arguments.encoder)
    photos = FolderSource(arguments.folder, labels_required=False)
    prepare: Any = encoder.preprocessing
    features = torch.cat([encoder(prepare(photos.decode(i))[None]) for i in range(len(photos))])
    query = encoder(prepare(Image.open(arguments.query))[None])
    similarity = F.cosine_similarity(features, query)

    paths, shown = [Path(photos.name(i)) for i in range(len(photos))], Path(arguments.query)
    order = [i for i in similarity.argsort(descending=True).tolist() if not paths[i].samefile(shown)]
    nearest = order[: arguments.count]
    for i in nearest:
        print(f"{similarity[i]:.3f}  {paths[i]}")
    if arguments.output:
        side = 160
        sheet = Image.new("RGB", ((len(nearest) + 1) * side + 10, side), "white")
        for place, path in enumerate([shown, *(paths[i] for i in nearest)]):
            picture = ImageOps.fit(Image.open(path).convert("RGB"), (side - 6, side - 6))
            sheet.paste(picture, (place * side + (10 if place else 0), 3))
        sheet.save(arguments.output)
    return [paths[i].name for i in nearest]


if __name__ == "__main__":
    main()
