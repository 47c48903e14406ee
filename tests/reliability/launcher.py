"""Starts real training processes quickly, and makes faults happen in them at exact places.

Run as `python tests/reliability/launcher.py` it imports main_moco once and then forks a process for each rank it is
asked to start: what torchrun starts, without the seconds of importing. Nothing is shared after the fork, kill -9 is
kill -9, and the ranks find each other through gloo as usual. Requests and answers are JSON objects, one a line, on
stdin and stdout:

    {"start": [{"argv": [...], "env": {...}, "faults": [...], "output": FILE}, ...]}  ->  {"pids": [...]}
    {"wait": [pids], "seconds": 60}  ->  {"codes": [exit code, or -signal; null: still running]}

A fault names a function and which of its calls is struck: {"at": "moco.builder:MoCo.enqueue", "call": 7, "do":
"kill"}. It is put in place after the fork, in that process alone; production code knows nothing of it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


# -- what a fault does -------------------------------------------------------------------------------------------------


def kill(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop(*_: Any) -> None:
    """Stands still without dying, like a rank that waits for a dead file server."""
    os.kill(os.getpid(), signal.SIGSTOP)


def send(number: signal.Signals, *_: Any) -> None:
    os.kill(os.getpid(), number)


def exit_now(*_: Any) -> None:
    """The process ends at once with code 1, as after an uncaught error in foreign code."""
    os._exit(1)


def poison(step: Any, *_: Any) -> None:
    """A weight of the query encoder becomes NaN: from the next forward pass on every number is."""
    import torch

    with torch.no_grad():
        weight = next(step.moco.encoder_q.parameters())
        weight[(0,) * weight.dim()] = float("nan")  # channels_last has no flat view


def flip_weight(step: Any, *_: Any) -> None:
    """One bit of one weight changes on this rank alone, as in a faulty memory."""
    import torch

    weight = next(step.moco.encoder_q.parameters()).detach()
    weight[(0,) * (weight.dim() - 1)][:1].view(torch.int32).bitwise_xor_(1 << 20)


def flip_queue(step: Any, *_: Any) -> None:
    """One bit of one entry of the queue changes on this rank alone: of the newest, which stays longest."""
    import torch

    newest = (int(step.moco.queue_ptr) - 1) % step.moco.K
    step.moco.queue[0, newest : newest + 1].view(torch.int32).bitwise_xor_(1 << 20)


def spoil_gradient(guard: Any, *_: Any) -> None:
    """The gradient is not finite although the batch was: an overflow."""
    for parameter in guard.trained:
        parameter.grad.fill_(float("inf"))


def note_batch(_: Any, batch: Any, epoch: int, *__: Any) -> None:
    """Prints which samples a step is given."""
    print("BATCH", epoch, *batch.index.tolist(), flush=True)


def fill_disk(*_: Any) -> None:
    """From here on, no file grows past a kilobyte: what a full disk or quota does. Python ignores the signal."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))


ACTIONS: dict[str, Callable[..., None]] = {
    action.__name__: action
    for action in (
        kill,
        stop,
        exit_now,
        poison,
        spoil_gradient,
        flip_weight,
        flip_queue,
        fill_disk,
        note_batch,
    )
} | {number.name: partial(send, number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}


def install(fault: dict[str, Any]) -> None:
    """Wraps the function that `fault["at"]` names, so that its `call`-th call (from 1; 0: each) first does `do`.

    "after": true strikes when that call returns instead.
    """
    module_name, _, path = fault["at"].partition(":")
    owner: Any = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original, action, calls, lock = getattr(owner, name), ACTIONS[fault["do"]], [0], threading.Lock()

    def struck(*arguments: Any, **named: Any) -> Any:
        with lock:
            calls[0] += 1
            now = fault["call"] in (0, calls[0])
        if now and not fault.get("after"):
            action(*arguments)
        result = original(*arguments, **named)
        if now and fault.get("after"):
            action(*arguments)
        return result

    setattr(owner, name, struck)


# -- processes ---------------------------------------------------------------------------------------------------------


def leave(code: int) -> NoReturn:
    """Ends a forked process as the interpreter does, but for freeing each object it inherited: that is a copy of most
    of its memory, and a second of two busy cores."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_rank(rank: dict[str, Any], main: Callable[[list[str]], int]) -> NoReturn:
    """In the forked process: everything a fresh `python main_moco.py ARGV` would find, then main."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: dies with the launcher, whatever a test does
    output = os.open(rank["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    os.environ.update(rank.get("env", {}))
    for fault in rank.get("faults", []):
        install(fault)
    sys.argv = ["main_moco.py", *rank["argv"]]
    leave(main(rank["argv"]))


def wait(pids: list[int], seconds: float, ended: dict[int, tuple[int, float]]) -> None:
    """Collects exits into `ended` until all of `pids` are there or the time is up."""
    deadline = time.monotonic() + seconds
    while not all(pid in ended for pid in pids) and time.monotonic() < deadline:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            ended[pid] = os.waitstatus_to_exitcode(status), time.monotonic()
        else:
            time.sleep(0.005)


def serve() -> int:
    import main_moco

    for slow in (
        "ffcv",
        "timm",
        "sklearn.datasets",
        "torch._dynamo",
        "PIL.PngImagePlugin",
    ):  # imported where they are needed
        with contextlib.suppress(ImportError):
            importlib.import_module(slow)
    ended: dict[int, tuple[int, float]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        if "start" in request:
            pids = []
            for rank in request["start"]:
                pid = os.fork()
                if pid == 0:
                    run_rank(rank, main_moco.main)
                pids.append(pid)
            answer = {"pids": pids}
        else:
            wait(request["wait"], request["seconds"], ended)
            answer = {"codes": [ended[pid][0] if pid in ended else None for pid in request["wait"]]}
        print(json.dumps(answer), flush=True)
    return 0


def serve_torchrun() -> int:
    """`torchrun launcher.py ARGV`: main_moco.py, at the first start with the faults of MOCO_FAULTS, {rank: [fault]}."""
    import main_moco

    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        for fault in json.loads(os.environ.get("MOCO_FAULTS", "{}")).get(os.environ["RANK"], []):
            install(fault)
    return main_moco.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(serve_torchrun() if len(sys.argv) > 1 else serve())
