"""Compiles a part of the step; if that fails, runs it uncompiled."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch

from moco.world import own_cores


def compiled(plain: Callable[..., Any], part: str, **how: Any) -> Callable[..., Any]:
    """Compiles `plain`; after the first failure it calls `plain` itself.

    part: its name in the warning, which gives the reason once.
    how: arguments of torch.compile.
    torch.OutOfMemoryError is raised: the plain part needs more memory, not less. No setting of torch is changed.
    Only the variable TORCHINDUCTOR_COMPILE_THREADS is set, if it is not set yet.
    """
    # Inductor starts up to 32 worker processes in each rank, and reads this when it is first imported.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(own_cores()))
    fused = torch.compile(plain, **how)
    failed = False

    def run(*arguments: Any, **named: Any) -> Any:
        nonlocal failed
        if not failed:
            try:
                return fused(*arguments, **named)
            except Exception as error:  # no compiler, no Triton, an unsupported GPU: the compiler raises many kinds
                if _is_out_of_memory(error):
                    raise
                failed = True
                warnings.warn(f"torch.compile failed on the {part}, so the part runs uncompiled: {error}", stacklevel=2)
        return plain(*arguments, **named)

    return run


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Returns True if the device had no memory left.

    The compiler wraps the errors of its kernels.
    """
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        error = getattr(error, "inner_exception", None) or error.__cause__
    return False
