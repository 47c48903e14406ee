"""Disks that fill up, folders that are read-only, files that are damaged, two runs in one folder."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from moco.errors import EXIT_INPUT
from moco.run.checkpoint import checkpoints, latest, load
from tests.reliability.conftest import Tally
from tests.reliability.runs import Launcher, assert_same_run, fault

SETTINGS = """-a smallcnn --image-size 16 -b 8 --epochs 2 --moco-k 20 --moco-dim 8 --seed 5 -p 2 -j 1 --deterministic
    --no-tensorboard --eval-freq 0 --save-every 2 --bn-group-size 4"""


def arguments(images: Path) -> list[str]:
    return [str(images), *SETTINGS.split()]


@pytest.fixture(scope="module")
def undisturbed(launcher: Launcher, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "undisturbed"
    ended = launcher.run(arguments(images), folder)
    assert ended.codes == [0], ended.output
    return folder


def goes_on(launcher: Launcher, images: Path, folder: Path, undisturbed: Path) -> str:
    ended = launcher.run([*arguments(images), "--resume", "auto"], folder)
    assert ended.codes == [0], ended.output
    assert_same_run(folder, undisturbed)
    return ended.output


@pytest.mark.parametrize("place", ["moco.run.saver:save", "moco.run.log:RunLog._write"])
def test_full_disk(
    place: str, launcher: Launcher, images: Path, undisturbed: Path, tally: Tally, tmp_path: Path
) -> None:
    """From the second save, or the fourth log line on: one sentence, exit code 2, and no harm to what was saved."""
    call = 2 if place.endswith("save") else 4
    with tally("full disk"):
        ended = launcher.run(arguments(images), tmp_path / "run", faults={0: [fault(place, call, "fill_disk")]})
        assert ended.codes == [EXIT_INPUT], ended.output
        assert re.search(r"error: cannot write .*; make room.*--resume auto", ended.output)
        assert "Traceback" not in ended.output
        for path in checkpoints(tmp_path / "run"):
            load(path)
        assert not list((tmp_path / "run").glob(".*.saving"))
        goes_on(launcher, images, tmp_path / "run", undisturbed)


def test_folder_that_cannot_be_written(launcher: Launcher, images: Path, tally: Tally, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with tally("read-only folder"):
        for world in (1, 2):
            ended = launcher.run(arguments(images), tmp_path / "file" / "run", world=world)
            assert ended.codes == [EXIT_INPUT] * world, ended.output
            assert ended.output.count("error: cannot write into") == 1
            assert "Traceback" not in ended.output


def test_folder_turned_read_only(
    launcher: Launcher, images: Path, undisturbed: Path, tally: Tally, tmp_path: Path
) -> None:
    """In the middle of the run its folder is moved away, and a file put in its place: no file can be made there."""
    folder = tmp_path / "run"
    with tally("read-only folder"):
        started = launcher.start(arguments(images), folder, faults={0: [fault("moco.run.saver:save", 2, "stop")]})
        wait_until_stopped(started.pids[0])
        folder.rename(tmp_path / "moved")
        folder.write_text("")
        started.signal(signal.SIGCONT)
        ended = started.end()
        assert ended.codes == [EXIT_INPUT], ended.output
        assert "error: cannot write" in ended.output
        folder.unlink()
        (tmp_path / "moved").rename(folder)
        goes_on(launcher, images, folder, undisturbed)


def wait_until_stopped(pid: int) -> None:
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "Tt":
        os.sched_yield()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace_by_text(path: Path) -> None:
    path.write_text("404 not found")


@pytest.mark.parametrize("damage", [cut_short, empty, flip_a_bit, replace_by_text])
def test_damaged_checkpoints_are_passed_over(
    damage: Callable[[Path], None], launcher: Launcher, images: Path, undisturbed: Path, tally: Tally, tmp_path: Path
) -> None:
    """The newest is damaged after a kill: the one before it is taken, and the reason is said."""
    folder = tmp_path / "run"
    with tally("damaged checkpoint"):
        killed = {0: [fault("moco.pretrain.step:TrainingStep.__call__", 12, "kill")]}
        ended = launcher.run(arguments(images), folder, faults=killed)
        assert ended.codes == [-9]
        newest, before = checkpoints(folder)[:-3:-1]
        damage(newest)
        output = goes_on(launcher, images, folder, undisturbed)
        assert f"skipped {newest}: {newest} is" in output
        assert f"resuming from {before}" in output
        assert f"set aside {newest.name}" in output


def test_a_damaged_checkpoint_given_by_name_is_refused(
    launcher: Launcher, images: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """`--resume PATH` means that file: no other is taken in its place."""
    path = tmp_path / "checkpoint_0000.pth.tar"
    path.write_bytes((undisturbed / path.name).read_bytes())
    flip_a_bit(path)
    for world in (1, 2):
        ended = launcher.run([*arguments(images), "--resume", str(path)], tmp_path / "run", world=world)
        assert ended.codes == [EXIT_INPUT] * world
        assert ended.output.count("do not match its checksum") == 1
        assert not (tmp_path / "run").exists()


def test_second_run_in_one_folder(
    launcher: Launcher, images: Path, undisturbed: Path, tally: Tally, tmp_path: Path
) -> None:
    """Refused while the first lives, even if it does nothing; after its kill -9 the folder is free at once."""
    folder = tmp_path / "run"
    with tally("two runs in one folder"):
        first = launcher.start(arguments(images), folder, faults={0: [fault("moco.builder:MoCo.enqueue", 5, "stop")]})
        wait_until_stopped(first.pids[0])
        before = sorted((path.name, path.stat().st_size) for path in folder.iterdir())
        for world in (1, 2):
            second = launcher.run([*arguments(images), "--resume", "auto"], folder, world=world)
            assert second.codes == [EXIT_INPUT] * world, second.output
            assert re.search(
                rf"error: {folder} is in use by another run \(host \S+, process {first.pids[0]}\)", second.output
            )
        assert sorted((path.name, path.stat().st_size) for path in folder.iterdir()) == before
        first.signal(signal.SIGKILL)
        assert first.end().codes == [-9]
        goes_on(launcher, images, folder, undisturbed)


def test_a_fresh_start_does_not_overwrite_a_run(launcher: Launcher, images: Path, undisturbed: Path) -> None:
    before = sorted((path.name, path.stat().st_mtime_ns) for path in undisturbed.iterdir())
    ended = launcher.run(arguments(images), undisturbed)
    assert ended.codes == [EXIT_INPUT]
    assert "already holds a run; pass --resume auto" in ended.output
    assert sorted((path.name, path.stat().st_mtime_ns) for path in undisturbed.iterdir()) == before


def test_going_back_to_an_older_checkpoint(
    launcher: Launcher, images: Path, undisturbed: Path, tally: Tally, tmp_path: Path
) -> None:
    """The newer ones are set aside, so that the next --resume auto does not jump back into the abandoned future."""
    folder = tmp_path / "run"
    with tally("going back"):
        assert launcher.run(arguments(images), folder).codes == [0]
        older = folder / "checkpoint_0000.pth.tar"
        killed = {0: [fault("moco.pretrain.step:TrainingStep.__call__", 2, "kill")]}
        ended = launcher.run([*arguments(images), "--resume", str(older)], folder, faults=killed)
        assert ended.codes == [-9], ended.output
        assert latest(folder)[0] == older
        output = goes_on(launcher, images, folder, undisturbed)
        assert f"resuming from {older}" in output
