"""Opens files with encoders: torch, safetensors, moco.export and Hugging Face."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from moco.errors import InputError
from moco.run import checkpoint

METADATA = "metadata.json"  # beside the weights in a folder that moco.export has written


def open_weights(path: Path) -> dict[str, Any]:
    """Reads the dict of a checkpoint.

    Its tensors are in the dict itself or in an entry such as 'state_dict', beside `arch` and other entries.
    path: a torch or safetensors file, or a folder of moco.export or `timm.models.save_for_hf`.
    InputError if it is missing, damaged, or could run code when it is loaded.
    """
    if path.is_dir():
        for told, name in ((METADATA, None), ("config.json", "model.safetensors")):
            if (path / told).is_file():
                about = _read_json(path / told)
                file = name or about.get("file")
                if not isinstance(file, str) or Path(file).name != file:  # it may come from a stranger
                    raise InputError(f"{path / told} does not name a file beside it: give the checkpoint file itself")
                return open_weights(path / file) | _described(about)
        raise InputError(f"{path} is a folder without {METADATA} or config.json: give the checkpoint file itself")
    if path.suffix == ".safetensors":
        content = _open_safetensors(path)
    else:
        # argparse.Namespace only holds values; the files of DINO and MAE keep their options in one
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = checkpoint.load(path)
    if (path.parent / METADATA).is_file():
        about = _read_json(path.parent / METADATA)
        return (_described(about) if about.get("file") == path.name else {}) | content
    return content


def _open_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open  # it comes with timm

    try:
        with safe_open(path, "pt") as file:
            told = json.loads((file.metadata() or {}).get("moco", "{}"))
            return {"state_dict": {key: file.get_tensor(key) for key in file.keys()}} | _described(told)  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError(f"there is no checkpoint {path}; check the path") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or no safetensors file ({error}); fetch or write it again") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}; fetch or write it again") from error
    return content if isinstance(content, dict) else {}


def _described(about: dict[str, Any]) -> dict[str, Any]:
    """Returns a checkpoint's entries from the metadata beside the weights.

    The metadata is moco.export's, or the config.json of timm's folders.
    """
    if "architecture" in about:
        return {"arch": f"timm:{about['architecture']}"}
    return {key: about[key] for key in ("arch", "epoch") if about.get(key) is not None} | (
        {"moco_run": {"options": about["options"], "classes": about.get("classes")}} if "options" in about else {}
    )
