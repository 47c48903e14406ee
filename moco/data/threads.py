"""Runs tasks on daemon threads that can be stopped at once.

concurrent.futures waits at exit until a thread has returned, so one read that hangs (a dead network disk) would hang
the process. Plain daemon threads that run native code during the interpreter's shutdown abort the process. Here the
threads are stopped and joined at exit. Only a thread that is stuck is abandoned.
"""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections.abc import Callable
from types import TracebackType

import torch

from moco.world import current, own_cores

Task = Callable[[], None]  # must not raise: it passes its errors on itself

JOIN_SECONDS = 5.0  # a thread that needs longer for one image is stuck

_open_crews: weakref.WeakSet[Crew] = weakref.WeakSet()


def worker_count(wished: int | None = None) -> int:
    """Returns the number of threads for this process.

    It is the process's part of the cores, and at most its part of the `wished` threads of the node. The processes of a
    node share both, as in MoCo. The cores are those that the process may run on.
    """
    return own_cores() if wished is None else max(1, min(-(-wished // current().local_size), own_cores()))


class Crew:
    """Runs tasks in the order given, on `size` threads.

    As a context manager it drops, at its end, the tasks that have not begun.
    """

    def __init__(self, size: int, name: str = "loader") -> None:
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        ready = threading.Semaphore(0)
        self._threads = [
            threading.Thread(target=_work, args=(self._tasks, self._stop, ready), name=f"{name}-{i}", daemon=True)
            for i in range(size)
        ]
        _open_crews.add(self)
        before = torch.get_num_threads()
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            ready.acquire()
        torch.set_num_threads(before)  # the default again; see _work

    def submit(self, task: Task) -> None:
        self._tasks.put(task)

    def close(self) -> None:
        """Ends the threads; a stuck one is abandoned after JOIN_SECONDS."""
        self._stop.set()
        for _ in self._threads:
            self._tasks.put(None)
        threads = self._threads
        self._threads = []
        if not threads:  # closed before: a generator may end after Python has cleared this module's names
            return
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(JOIN_SECONDS)
        self._threads = [thread for thread in threads if thread.is_alive()]
        _open_crews.discard(self)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, where: TracebackType | None) -> None:
        self.close()


def _work(tasks: queue.SimpleQueue[Task | None], stop: threading.Event, ready: threading.Semaphore) -> None:
    # No reference to the crew here, so that a crew without other references can be collected.
    # Without set_num_threads(1) each loader thread would keep its own team of OpenMP threads for torch's operations.
    # The setting holds for this thread, but is also the default of later threads. Reading it first makes torch take
    # this thread's default now.
    torch.get_num_threads()
    torch.set_num_threads(1)
    ready.release()
    while (task := tasks.get()) is not None:
        if not stop.is_set():
            task()
        del task  # it holds a batch


@atexit.register
def _close_all() -> None:
    for crew in list(_open_crews):
        crew.close()
