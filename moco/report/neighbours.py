"""Shows validation images with their nearest neighbours in feature space."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from moco.data.augment import Augment
from moco.data.hub import is_hub
from moco.data.source import Source
from moco.encoders import build_encoder, trunk
from moco.encoders.files import load_trunk, network_of, read_encoder
from moco.encoders.preprocessing import suited, with_images_of
from moco.errors import InputError
from moco.evaluate.features import centre_crops, extract_features
from moco.plugins import is_outside
from moco.run.options import DataOptions

THUMBNAIL = 72  # pixels a side


@dataclass(frozen=True)
class Shown:
    """Holds an image of the figure."""

    name: str  # of its file or sample
    label: str  # its class; "" if unknown
    similarity: float  # cosine to the query
    uri: str  # the image as a data URI

    def compared_with(self, query: Shown) -> str:
        """Returns "same" or "different" class; "" if one is unknown."""
        return "" if not (self.label and query.label) else "same" if self.label == query.label else "different"


@dataclass(frozen=True)
class Row:
    query: Shown
    nearest: list[Shown]


@torch.no_grad()
def grid(checkpoint: Path, options: Mapping[str, Any], queries: int, count: int = 8) -> list[Row]:
    """Finds the `count` nearest neighbours of `queries` images, the nearest first.

    The queries are evenly spaced in the validation split, or in the training split if there is no other. Neighbours are
    images of the same split, by the cosine of the trunk's features. Images that cannot be read are left out.
    options: those of the run; they name its images. InputError if images or checkpoint cannot be read.
    """
    data = options.get("data")
    dataset = str(options.get("dataset"))
    if data is not None and not Path(data).exists():
        raise InputError(f"the run's images are no longer in {data}: put them back, or leave out --neighbours")
    if is_outside(dataset) and not is_hub(dataset):
        raise InputError(
            f"the run's images come from --dataset {dataset}, which the report does not import; leave out --neighbours"
        )
    words = list(options.get("dataset_arg") or [])
    given = DataOptions(data=data, dataset=dataset, dataset_arg=words, skip_bad_images=True)
    where = with_images_of(given, options)
    source = where.open("val" if where.has("val") else "train", labels_required=False)
    size, recipe_name = suited(dataset, options)
    recipe = where.find_recipe(recipe_name)
    file = read_encoder(checkpoint)
    arch, arch_arg = network_of(file, None, [])
    encoder = build_encoder(arch, 1, image_size=size, arguments=arch_arg, channels=where.pixel_format.channels)
    load_trunk(encoder, file)
    images = centre_crops(source, recipe, size, where, torch.device("cpu"))
    x, _ = extract_features(trunk(encoder), images, Augment(recipe.for_evaluation(), 0))
    x = F.normalize(x, dim=1)
    readable = [index for index in range(len(source)) if index not in images.bad]  # the images of the rows of x
    rows = []
    for query in np.unique(np.linspace(0, len(x) - 1, queries).round().astype(int)).tolist():
        similarity = x @ x[query]
        others = [i for i in similarity.argsort(descending=True, stable=True).tolist()[: count + 1] if i != query]
        nearest = [_shown(source, readable[i], float(similarity[i])) for i in others[:count]]
        rows.append(Row(_shown(source, readable[query], 1.0), nearest))
    return rows


def _for_eyes(pixels: np.ndarray) -> np.ndarray:
    """Returns the first three channels as RGB, or the first as grey."""
    return pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0]


def _shown(source: Source, index: int, similarity: float) -> Shown:
    label = int(source.labels[index])
    picture = Image.fromarray(_for_eyes(np.asarray(source.decode(index))))
    packed = io.BytesIO()
    ImageOps.fit(picture, (THUMBNAIL, THUMBNAIL)).save(packed, "JPEG", quality=85)
    uri = f"data:image/jpeg;base64,{base64.b64encode(packed.getvalue()).decode()}"
    return Shown(source.name(index), source.classes[label] if label >= 0 else "", similarity, uri)
