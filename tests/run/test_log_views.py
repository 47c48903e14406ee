"""What is seen while a run trains: plain lines in a pipe, a bar on a terminal."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from moco.run.log_views import Console, duration, line

VALUES = {
    "loss": 6.54321,
    "loss_align": 0.5,
    "acc1": 45.678,
    "lr": 0.03,
    "steps_skipped": 2,
    "images_per_s": 1340.4,
    "data_wait": 0.012,
    "memory_gb": 3.25,
    "eta_s": 7384.0,
}


def test_the_first_columns_tell_how_it_goes() -> None:
    console = Console(stream := io.StringIO())
    console.step(VALUES, epoch=2, epochs=200, step=40, steps=5004)
    assert stream.getvalue() == (
        "epoch   3/200  step   40/5004  loss  6.5432  acc1  45.7  ETA  2h03m  loss_align 0.5000  lr 0.03"
        "  steps_skipped 2  1340 img/s  data wait 1%  3.25 GB\n"
    )


def test_lines_are_aligned() -> None:
    console = Console(stream := io.StringIO())
    for step, loss, eta in ((1, 10.5, 100_000.0), (100, 9.25, 59.0)):
        console.step({"loss": loss, "acc1": loss, "eta_s": eta, "lr": 1.0}, epoch=0, epochs=10, step=step, steps=100)
    first, second = stream.getvalue().splitlines()
    assert [first.index(word) for word in ("loss", "acc1", "ETA", "lr")] == [
        second.index(word) for word in ("loss", "acc1", "ETA", "lr")
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (86399, "23h59m"), (97200, "1d03h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_odd_values() -> None:
    assert duration(float("inf")) == duration(float("nan")) == "?"
    assert duration(-3.0) == "0s"
    odd = {"loss": float("nan"), "note": "text", "nested": {"a": 1}, "flag": True}
    assert line(odd) == "loss     nan  note text  flag True"


def test_no_bar_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.advance(epoch=0, epochs=1, step=1, steps=2)
    console.line("a line")
    console.close()
    assert capsys.readouterr() == ("a line\n", "")


def test_a_bar_on_a_terminal() -> None:
    """In a pseudo-terminal: the bar is on stderr with the values, lines stay whole above it, each epoch has a bar."""
    program = """
from moco.run.log_views import Console
console = Console()
for epoch in range(2):
    for step in range(1, 4):
        console.advance(epoch=epoch, epochs=2, step=step, steps=3)
    console.step({"loss": 1.5}, epoch=epoch, epochs=2, step=3, steps=3)
    console.line("warning: something")
    console.summary("eval", {"knn_top1": 50.0}, epoch=epoch)
"""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=slave, text=True) as child:
        os.close(slave)
        assert child.stdout is not None
        lines = child.stdout.read().splitlines()
        shown = b""
        while True:
            try:
                shown += os.read(master, 65536)
            except OSError:
                break
    os.close(master)
    assert lines == [
        "warning: something",
        "epoch 1  eval  knn_top1  50.0",
        "warning: something",
        "epoch 2  eval  knn_top1  50.0",
    ]
    assert b"epoch 1/2: 100%" in shown
    assert b"epoch 2/2: 100%" in shown
    assert b"loss  1.5000" in shown
