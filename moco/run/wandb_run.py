"""Logging to Weights & Biases as well, where a user asks for it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moco.errors import InputError


def open_wandb(project: str, folder: Path, options: Mapping[str, Any]) -> Any:
    """wandb's run of this folder: begun, or gone on with. InputError if wandb is asked for and not installed."""
    try:
        import wandb  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise InputError("wandb was asked for but is not installed; pip install wandb, or leave --wandb out") from error
    id_file = folder / "wandb_id"  # so that a resumed run goes on in the same curves
    run_id = id_file.read_text().strip() if id_file.exists() else None
    settings: dict[str, Any] = dict(project=project, dir=str(folder), config=dict(options), id=run_id, resume="allow")
    try:
        run = wandb.init(**settings)
    except Exception as error:  # no network, no key: a run is not lost for want of a dashboard
        print(f"warning: wandb cannot connect ({error}); recording offline, for `wandb sync`", file=sys.stderr)
        run = wandb.init(mode="offline", **settings)
    id_file.write_text(run.id)
    return run
