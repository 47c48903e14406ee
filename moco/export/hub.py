"""Sends a folder that moco.export wrote to the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from moco.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_name(name: str) -> None:
    """Raises InputError unless `name` is USER/NAME and huggingface_hub is installed."""
    if not _NAME.fullmatch(name):
        raise InputError(f"--push-to-hub {name} must have the form USER/NAME")
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise InputError("--push-to-hub needs huggingface_hub: pip install huggingface_hub") from error


def push(folder: Path, name: str, private: bool, message: str) -> str:
    """Commits the files of `folder` to the repository `name`; returns its address.

    It makes the repository if it is new. InputError, with the hub's reason, if that fails. The folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except Exception as error:  # no login, no permission, no network: the library raises many kinds
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{name} was not sent: {why}; log in with `hf auth login`, then `hf upload {name} {folder}` sends the files"
        ) from error
    return str(address)
