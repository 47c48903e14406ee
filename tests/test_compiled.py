"""A part that does not compile: said once, and no shortage of memory is hidden."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moco.compiled import compiled
from moco.world import own_cores


def failing_with(error: Exception) -> Callable[..., Callable[..., Tensor]]:
    """A torch.compile whose product raises `error`."""

    def fused(*_: object) -> Tensor:
        raise error

    return lambda plain, **how: fused


def wrapped(inner: Exception) -> Exception:
    error = RuntimeError("the compiled kernel failed")
    error.__cause__ = inner
    return error


def test_a_failure_is_said_once_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", failing_with(RuntimeError("no compiler here")))
    double = compiled(lambda x: 2 * x, "doubling")
    with pytest.warns(UserWarning, match="failed on the doubling, so the part runs uncompiled: no compiler here"):
        assert double(torch.tensor(3)) == 6
    assert double(torch.tensor(4)) == 8  # a second warning would be an error


@pytest.mark.parametrize("wrap", [lambda error: error, wrapped], ids=["plain", "wrapped"])
def test_out_of_memory_is_raised(monkeypatch: pytest.MonkeyPatch, wrap: Callable[[Exception], Exception]) -> None:
    error = wrap(torch.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr(torch, "compile", failing_with(error))
    with pytest.raises(type(error), match=r"memory|kernel failed"):
        compiled(lambda x: x, "identity")(torch.tensor(1))


def test_no_process_wide_setting_and_bounded_workers() -> None:
    """In a fresh process, as one of several ranks of a node."""
    script = (
        "import torch; from moco.builder import MoCo, compile_encoders; from moco.encoders import build_encoder\n"
        "compile_encoders(MoCo(build_encoder('smallcnn', 4), dim=4, K=8, bn='local', seed=0))\n"
        "import torch._dynamo.config as dynamo, torch._inductor.config as inductor\n"
        "print(dynamo.suppress_errors, inductor.compile_threads)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_COMPILE_THREADS"}
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=200)
    assert ran.stdout.split() == ["False", str(own_cores())], ran.stderr[-2000:]
