"""Prints the digests of twenty training steps: equal before and after a change that must not alter numbers.

    python -m tests.reference_bits    # or: make bits

For each loss: the SHA-256 of the weights, the queue and the momentum after the steps of test_reference_losses.py, and
of the printed losses. The digests depend on the machine, so compare two commits on the same one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import tempfile
from pathlib import Path

import torch

import main_moco

COMMAND = (
    "--dataset digits -a smallcnn -b 71 --epochs 1 --seed 0 -p 1 -j 1 --lr 0.005 --moco-dim 32 --moco-k 100"
    " --moco-m 0.9 --moco-t 0.1 --bn split --bn-group-size 32 --eval-freq 0 --no-tensorboard --device cpu"
)


def digest(state: object) -> str:
    """SHA-256 over the tensors and numbers of a checkpoint, in the order in which it holds them."""
    sum_ = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, dict):
            for entry in value.values():
                add(entry)
        elif isinstance(value, (list, tuple)):
            for entry in value:
                add(entry)
        elif isinstance(value, torch.Tensor):
            sum_.update(value.contiguous().numpy().tobytes())
        elif isinstance(value, (int, float)):
            sum_.update(repr(value).encode())

    add(state)
    return sum_.hexdigest()[:16]


def bits(loss: str) -> str:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        code = main_moco.main([*COMMAND.split(), "--loss", loss, "--output-dir", folder])
        if code:
            raise SystemExit(f"the run of --loss {loss} ended with {code}")
        saved = torch.load(Path(folder) / "checkpoint_0000.pth.tar", weights_only=True)
        lines = (Path(folder) / "log.jsonl").read_text().splitlines()
    losses = [line.partition('"loss": ')[2].partition(",")[0] for line in lines if '"kind": "train"' in line]
    momenta = [entry["momentum_buffer"] for entry in saved["optimizer"]["state"].values()]
    losses_digest = hashlib.sha256(" ".join(losses).encode()).hexdigest()[:16]
    return f"weights {digest(saved['state_dict'])}  momentum {digest(momenta)}  losses {losses_digest} ({len(losses)})"


if __name__ == "__main__":
    for name in ("infonce", "align-uniform", "hcl", "supcon"):
        print(f"{name:14} {bits(name)}")
