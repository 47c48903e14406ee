"""A data set that leaves a thread inside torch: the digits, with a daemon thread that never stops.

Used by ends.py as `--dataset tests.reliability.busy_threads:digits`. A data set or loss from outside may well prefetch
in such a thread; a decoding thread of ours that hangs on a file server is another.
"""

from __future__ import annotations

import threading

import torch

from moco.data.datasets import open_split
from moco.data.source import Source


def _work() -> None:
    square = torch.ones(200, 200)
    while True:
        square @ square


def digits(split: str, data: str | None) -> Source:
    threading.Thread(target=_work, name="busy", daemon=True).start()
    return open_split(None, "digits", split)
