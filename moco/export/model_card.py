"""Writes the README.md of an encoder for the Hugging Face hub."""

from __future__ import annotations

from typing import Any


def model_card(about: dict[str, Any]) -> str:
    """Returns Markdown from the metadata that `moco.export` writes.

    Missing values are "unknown".
    """
    how = about["preprocessing"]
    classes = about["classes"]
    rows = {
        "Network": about["arch"],
        "Output": f"{len(classes)} classes" if classes else f"features: {about['feature_dim']} numbers per image",
        "Pretraining": f"momentum contrast, loss {about['loss'] or 'unknown'}, recipe {about['recipe'] or 'unknown'}",
        "Data": about["options"].get("dataset", "unknown"),
        "Epochs": about["epoch"] or "unknown",
        "Commit of the code": about["git"] or "unknown",
        "Images": f"centre square, {how['crop']:g} of the shorter side, {how['size']} px",
        "Mean, standard deviation": f"{how['mean']}, {how['std']}",
        "Licence of the weights": about["licence"],
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    options = "\n".join(f"{key}: {value}" for key, value in about["options"].items())
    result = "class scores" if classes else "features"
    place = f"hf-hub:{about['hub']}" if about.get("hub") else "local-dir:PATH"
    return f"""---
library_name: timm
license: {about["licence"]}
pipeline_tag: image-{"classification" if classes else "feature-extraction"}
{_datasets(about)}tags:
- image-{"classification" if classes else "feature-extraction"}
- timm
- self-supervised-learning
---
# {about["arch"]}, pretrained with momentum contrast

| | |
|---|---|
{table}

```python
import timm
from timm.data import create_transform, resolve_data_config

network = timm.create_model("{place}", pretrained=True).eval()
transform = create_transform(**resolve_data_config({{}}, model=network))
{result.replace(" ", "_")} = network(transform(image)[None])  # image: a Pillow image
```
""" + (f"\nThe run's options:\n\n```yaml\n{options}\n```\n" if options else "")


# the data sets of torchvision under their names on the hub
_ON_THE_HUB = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "svhn": "ufldl-stanford/svhn"}


def _datasets(about: dict[str, Any]) -> str:
    """Returns the card's `datasets:` entry; empty without a name on the hub."""
    name = str(about["options"].get("dataset", ""))
    found = _ON_THE_HUB.get(name) or (name.split(":")[1] if name.startswith("hf:") else "")
    return f"datasets:\n- {found}\n" if found.count("/") == 1 and not found.startswith(("/", ".")) else ""
