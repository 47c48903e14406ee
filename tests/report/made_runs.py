"""Run and sweep folders as main_moco.py, main_lincls.py and launch/sweep.py leave them, made up for tests alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moco.pretrain.options import parse_pretrain
from moco.run.options import as_dict

OPTIONS = as_dict(parse_pretrain(["--dataset", "digits", "-a", "smallcnn", "--epochs", "2", "--seed", "0"]))


def run(
    folder: Path, *, git: str = "a" * 40, epochs: int = 2, uniformity: float = -2.0, alignment: float = 0.5,
    knn: float = 90.0, probe: float | None = None, **options: Any,
) -> Path:  # fmt: skip
    """A run of `epochs` of its two epochs, with an evaluation after each."""
    chosen = OPTIONS | options
    start = {"kind": "start", "epoch": 0, "options": chosen, "git": git, "machine": {"device": "a processor"}}
    records: list[dict[str, Any]] = [start]
    for epoch in range(epochs):
        records.append({"kind": "train", "epoch": epoch, "step": 1, "loss": 4.0 - epoch})
        records.append({"kind": "epoch", "epoch": epoch, "loss": 4.0 - epoch})
        found = {"knn_top1": knn - 5 * (1 - epoch), "val_alignment": alignment, "val_uniformity": uniformity}
        records.append({"kind": "eval", "epoch": epoch, **found, "val_tolerance": 0.4})
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if probe is not None:
        result = {"top1": probe, "pretrained": str(folder / "checkpoint_0001.pth.tar"), "options": {"lr": 30.0}}
        write(folder / "lincls" / "lincls.json", result)
    return folder


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def sweep(folder: Path, elements: dict[str, dict[str, Any]], name: str = "some") -> Path:
    """A sweep of finished elements, each with a probe; {"row": False} is one that has not ended."""
    write(folder / "sweep.json", {"name": name, "elements": list(elements)})
    for id, element in elements.items():
        place, how = folder / "elements" / id, dict(element)
        finished, probe = how.pop("row", True), how.pop("probe", 80.0)
        write(place / "element.json", {"swept": {}, "steps": [["main_moco"], ["main_lincls"]], "epochs": [2, 1]})
        run(place / "pretrain", **how)
        if probe is not None:
            result = {"top1": probe, "pretrained": f"elsewhere/{id}/pretrain/checkpoint_0001.pth.tar"}
            write(place / "lincls" / "lincls.json", result)
        if finished:
            write(place / "row.json", {"id": id})
    return folder
