"""The signal flag: set by each of the three signals, at any time, without doing anything else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

from moco.run.preemption import SIGNALS, Preemption


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A preempted run leaves the signals ignored; the other tests want theirs back."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_sets_the_flag_and_nothing_else(number: signal.Signals) -> None:
    with Preemption() as preemption:
        preemption.steps_follow()
        assert not preemption
        assert preemption.name == ""
        os.kill(os.getpid(), number)
        assert preemption
        assert preemption.name == number.name


@pytest.mark.parametrize("number", SIGNALS)
def test_while_images_are_listed_a_signal_ends_the_process(number: signal.Signals) -> None:
    """Nobody asks while a folder is listed that loops, or a named pipe waits for its writer."""
    program = f"""
import os
from moco.run.preemption import Preemption
with Preemption():
    os.mkfifo("pipe")
    os.kill(os.getpid(), {int(number)}) if "{number.name}" == "SIGUSR1" else print("ready", flush=True)
    open("pipe").close()
"""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", program]
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            assert child.stderr is not None
            if child.stdout.readline():
                child.send_signal(number)
            said = child.stderr.read()
    assert child.returncode == 75
    assert said == f"{number.name} before the first step: nothing to save; start the same command again\n"


def test_a_second_signal_changes_nothing() -> None:
    with Preemption() as preemption:
        preemption.steps_follow()
        assert not preemption
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        assert preemption.name == "SIGUSR2"


def test_handlers_are_put_back_and_nest() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Preemption() as outer:
        with Preemption() as inner:
            pass
        outer.steps_follow()
        assert not outer
        os.kill(os.getpid(), signal.SIGUSR1)
        assert outer.name == "SIGUSR1"
        assert not inner
        outer.signal = 0
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_signals_after_the_end_of_a_preempted_run_are_ignored() -> None:
    """They would replace its exit code."""
    with Preemption() as preemption:
        preemption.steps_follow()
        assert not preemption
        os.kill(os.getpid(), signal.SIGUSR1)
    for number in SIGNALS:
        os.kill(os.getpid(), number)


def test_handlers_are_put_back_after_an_error() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ZeroDivisionError), Preemption():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_in_the_middle_of_a_save_does_no_harm(tmp_path: os.PathLike[str]) -> None:
    """A process that saves in a loop is bombarded until it has gone: each save ends well, the exit code holds."""
    program = """
import sys, torch
from moco.run.checkpoint import load, save
from moco.run.preemption import Preemption
state = {"w": torch.arange(200_000)}
with Preemption() as preemption:
    preemption.steps_follow()
    assert not preemption
    print("ready", flush=True)
    saves = 0
    while not (preemption and saves >= 20):
        save(sys.argv[1], state)
        saves += 1
    assert load(sys.argv[1])["w"].equal(state["w"])
print(preemption.name)
sys.exit(75)
"""
    path = os.path.join(tmp_path, "checkpoint_0000.pth.tar")
    with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        while child.poll() is None:
            child.send_signal(signal.SIGUSR1)
        assert child.stdout.read() == "SIGUSR1\n"
    assert child.returncode == 75
    assert os.listdir(tmp_path) == ["checkpoint_0000.pth.tar"]
