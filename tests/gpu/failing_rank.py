"""One of two ranks fails by itself, in a world where destroying the process group never returns. See test_failure."""

from __future__ import annotations

import sys
import threading

import torch
import torch.distributed as dist

from moco import distributed
from moco.commands import run_command
from moco.errors import SampleError
from moco.world import World


def run() -> int:
    with distributed.session(World.launched(), torch.device("cpu"), timeout=60):
        if distributed.rank() == 1:
            dist.destroy_process_group = lambda *_: threading.Event().wait()  # as NCCL with a collective under way
            raise SampleError("image 7 cannot be read")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(run))
