"""Fetches encoders from the Hugging Face hub: `hf-hub:USER/NAME[@REVISION]`."""

from __future__ import annotations

from pathlib import Path

from moco.errors import InputError

PREFIX = "hf-hub:"
# Only these are fetched, so no pickle can run code; .pth is loaded as weights alone (moco/run/checkpoint.py).
_READ = ["config.json", "metadata.json", "*.safetensors", "*.pth", "*.pth.tar"]


def is_hub(path: str | Path) -> bool:
    return str(path).startswith(PREFIX)


def fetch(name: str) -> Path:
    """Fetches hf-hub:USER/NAME; returns its folder in the library's cache.

    InputError if it cannot be fetched.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(f"{name} needs huggingface_hub: pip install huggingface_hub") from error
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=_READ))
    except Exception as error:  # no network, no such name, no permission to read it: the library raises many kinds
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name} cannot be fetched: {why}; check the name, or log in with `hf auth login`") from error
