"""The loader: batches are a function of (seed, epoch, index, view), errors arrive, and nothing is left behind."""

from __future__ import annotations

import gc
import itertools
import os
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from moco.data import threads as crew
from moco.data.batch_memory import BatchMemory
from moco.data.decode import BadImage
from moco.data.folder import FolderPicture, FolderSource, JpegPicture
from moco.data.loader import MOST_BAD_IN_A_ROW, Batch, Loader, _Filling
from moco.data.sampler import Sampler
from moco.data.source import ArrayPicture, ArraySource, Source
from moco.data.threads import worker_count
from moco.errors import InputError
from moco.world import World, inside
from tests.data.conftest import Photo

N = 24


def arrays(n: int = N, side: int = 12) -> ArraySource:
    images = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    return ArraySource(images, np.arange(n) % 5, list("abcde"), "made up")


def loader(source: Source, batch: int = 5, *, seed: int = 1, rank: int = 0, world: int = 1, **options: Any) -> Loader:
    sampler = Sampler(len(source), batch, seed, drop_last=options.pop("drop_last", False), rank=rank, world_size=world)
    return Loader(source, sampler, **{"size": 8, "seed": seed, "workers": 2} | options)


def joined(batches: Iterable[Batch]) -> Batch:
    parts = list(batches)
    return Batch(*(torch.cat([getattr(b, name) for b in parts]) for name in ("crops", "index", "labels")))


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("crops", "index", "labels"))


class Broken(ArraySource):
    """Some samples cannot be read; `fault` says how."""

    def __init__(self, bad: Iterable[int], fault: Exception | None = None, n: int = N) -> None:
        super().__init__(arrays(n).images, arrays(n).labels, list("abcde"), "made up")
        self.bad, self.fault = set(bad), fault or BadImage("it is broken")

    def open(self, index: int) -> ArrayPicture:
        if index in self.bad:
            raise self.fault
        return super().open(index)


# What a batch is


def test_shapes_types_and_labels() -> None:
    source = arrays()
    batches = list(loader(source, views=3).epoch(0))
    assert [len(b.index) for b in batches] == [5, 5, 5, 5, 4]
    assert batches[0].crops.shape == (5, 3, 8, 8, 3)
    assert (batches[0].crops.dtype, batches[0].index.dtype) == (torch.uint8, torch.int64)
    whole = joined(batches)
    assert sorted(whole.index.tolist()) == list(range(N))
    assert whole.labels.tolist() == source.labels[whole.index.numpy()].tolist()


def test_crops_are_moco_s(shared_tree: Path) -> None:
    """Each view is Pillow's crop and bilinear resize of the box that was drawn for it."""
    source = FolderSource(shared_tree / "train")
    load = loader(source, size=24)
    batch = next(iter(load.epoch(3)))
    numbers = load.draws(3, batch.index.numpy())
    for row, index in enumerate(batch.index.tolist()):
        image = Image.open(source.name(index))
        for view, (top, left, h, w) in enumerate(load.boxes(numbers[row], (image.height, image.width))):
            expected = image.crop((left, top, left + w, top + h)).resize((24, 24), Image.Resampling.BILINEAR)
            ours = batch.crops[row, view].numpy().astype(int)
            assert np.abs(ours - np.asarray(expected).astype(int)).max() <= 1


def test_views_epochs_and_seeds_differ() -> None:
    source = arrays()
    first = joined(loader(source).epoch(0))
    assert not torch.equal(first.crops[:, 0], first.crops[:, 1])
    by_index = first.crops[first.index.argsort()]
    for other in (joined(loader(source).epoch(1)), joined(loader(source, seed=2).epoch(0))):
        assert not torch.equal(other.index, first.index)
        changed = (other.crops[other.index.argsort()] != by_index).flatten(1).any(1)
        assert changed.float().mean() > 0.9


def test_evaluation_crops(shared_tree: Path) -> None:
    source = FolderSource(shared_tree / "val")
    batch = joined(loader(source, size=20, views=1, eval_crop=0.875).epoch(0))
    for row, index in enumerate(batch.index.tolist()):
        image = Image.open(source.name(index))
        side = round(min(image.size) * 0.875)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        expected = image.crop((left, top, left + side, top + side)).resize((20, 20), Image.Resampling.BILINEAR)
        assert np.abs(batch.crops[row, 0].numpy().astype(int) - np.asarray(expected).astype(int)).max() <= 1
    assert same(batch, joined(loader(source, size=20, views=1, eval_crop=0.875, batch=5).epoch(0)))


def test_reduced_decoding_changes_little(photo: Photo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large JPEGs decoded at 1/2 to 1/8, against the same pixels decoded in full and then cropped: 2/255 on average."""
    for i in range(6):
        photo(i, 640 + 37 * i, 500 + 11 * i).save(tmp_path / f"{i}.jpg", quality=90)
    source = FolderSource(tmp_path, labels_required=False)
    full = ArraySource([source.decode(i) for i in range(6)], source.labels, [], "in full")
    used = []
    for picture in (FolderPicture, JpegPicture):  # without OpenCV and with it

        def decode(self: Any, k: int, rows: Any, real: Any = picture.decode) -> Any:
            used.append(k)
            return real(self, k, rows)

        monkeypatch.setattr(picture, "decode", decode)
    for size in (16, 32, 64):
        this, that = (joined(loader(s, size=size, scale=(0.5, 1.0)).epoch(0)) for s in (source, full))
        assert (this.crops.float() - that.crops.float()).abs().mean() <= 2
    assert set(used) == {2, 4, 8}


# The stream does not depend on how it is made


@pytest.mark.parametrize("options", [{"workers": 1}, {"prefetch": 1}, {"prefetch": 7}, {"workers": 3, "prefetch": 3}])
def test_any_number_of_threads(shared_tree: Path, options: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    source = FolderSource(shared_tree / "train")
    assert same(joined(loader(source, **options).epoch(2)), joined(loader(source).epoch(2)))


@pytest.mark.parametrize("world", [2, 3, 5])
def test_any_number_of_ranks(world: int) -> None:
    source = arrays()
    alone = joined(loader(source).epoch(1))
    ranks = [list(loader(source, rank=r, world=world).epoch(1)) for r in range(world)]
    assert same(joined(part for step in zip(*ranks, strict=True) for part in step), alone)
    assert ranks[-1][-1].crops.shape[1:] == (2, 8, 8, 3)


def test_any_batch_size_in_dataset_order() -> None:
    """What a sample looks like does not depend on its neighbours."""
    source = arrays()
    crops = []
    for batch in (1, 4, 24):
        whole = joined(loader(source, batch).epoch(1))
        crops.append(whole.crops[whole.index.argsort()])
    assert torch.equal(crops[0], crops[1])
    assert torch.equal(crops[0], crops[2])


@pytest.mark.parametrize("start", [0, 1, 3, 4, 5])
def test_starting_in_mid_epoch(start: int) -> None:
    source = arrays()
    whole = list(loader(source).epoch(2))
    rest = list(loader(source).epoch(2, start_step=start))
    assert len(rest) == len(whole) - start
    assert all(same(a, b) for a, b in zip(rest, whole[start:], strict=True))


def test_a_batch_is_the_consumers_to_keep() -> None:
    """Memory is used again only when nobody holds any part of the batch, be it one view of one sample in NumPy."""
    load = loader(arrays(), prefetch=1)
    kept = list(load.epoch(0))
    parts = [batch.crops[0, 1].numpy()[2:] for batch in load.epoch(0)]
    for _ in load.epoch(1):
        pass
    assert same(joined(kept), joined(loader(arrays(), prefetch=1).epoch(0)))
    assert all(np.array_equal(part, batch.crops[0, 1, 2:].numpy()) for part, batch in zip(parts, kept, strict=True))


# Bad samples


def test_a_bad_image_is_named_at_its_turn(shared_tree: Path, tree: Path) -> None:
    """Batches before it arrive; then the error says which index, which file, why, and what to do."""
    source = FolderSource(tree / "train")
    load = loader(source)
    victim = int(load.sampler.global_batch(0, 2)[1])
    Path(source.name(victim)).write_bytes(b"rubbish")
    batches = load.epoch(0)
    next(batches)
    next(batches)
    with pytest.raises(
        InputError, match=rf"image {victim} \(.*jpg\) cannot be read: .*not an image.*--skip-bad-images"
    ):
        next(batches)


def test_the_first_bad_image_of_a_batch_is_reported_whatever_the_threads_do() -> None:
    load = loader(Broken(range(N)), batch=N)
    first = int(load.sampler.global_batch(0, 0)[0])
    for _ in range(5):
        with pytest.raises(InputError, match=f"image {first} "):
            next(iter(load.epoch(0)))


def test_skipped_images_are_replaced_by_the_next_readable_one() -> None:
    bad = {3, 4, 5, N - 1}
    load = loader(Broken(bad), skip_bad_images=True)
    ours = joined(load.epoch(1))
    plain = joined(loader(arrays()).epoch(1))
    stand_in = {3: 6, 4: 6, 5: 6, N - 1: 0}
    assert ours.index.tolist() == [stand_in.get(i, i) for i in plain.index.tolist()]
    assert ours.labels.tolist() == arrays().labels[ours.index.numpy()].tolist()
    place = {index: row for row, index in enumerate(plain.index.tolist())}
    for row, index in enumerate(ours.index.tolist()):
        assert torch.equal(ours.crops[row], plain.crops[place[index]])
    assert load.bad_samples == 4
    assert load.bad == dict.fromkeys(bad, "it is broken")
    list(load.epoch(2))
    assert load.bad_samples == 4  # counted once each


def test_skipping_gives_up_where_nothing_can_be_read() -> None:
    n = MOST_BAD_IN_A_ROW + 1
    with pytest.raises(InputError, match=f"{MOST_BAD_IN_A_ROW} images in a row"):
        list(loader(Broken(range(n), n=n), skip_bad_images=True).epoch(0))


@pytest.mark.parametrize("skip", [False, True])
def test_other_errors_are_never_skipped(skip: bool) -> None:
    """A bug, or memory running out, is not a bad image. The error says where it happened."""
    with pytest.raises(MemoryError) as caught:
        list(loader(Broken({7}, MemoryError("none left")), skip_bad_images=skip).epoch(0))
    if sys.version_info >= (3, 11):  # before, exceptions have no notes
        assert caught.value.__notes__ == ["while loading image 7 (made up[7])"]


# Threads


class Stuck(ArraySource):
    """Reads of one sample hang, as on a dead network disk, until `gate` opens."""

    def __init__(self) -> None:
        super().__init__(arrays().images, arrays().labels, [], "made up")
        self.gate = threading.Event()

    def open(self, index: int) -> ArrayPicture:
        if index == 7:
            self.gate.wait()
        return super().open(index)


def test_a_stuck_thread_ends_the_run_with_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "JOIN_SECONDS", 0.01)
    source = Stuck()
    try:
        with pytest.raises(InputError, match=r"no image could be read for .*made up\[7\].*check the disk"):
            list(loader(source, timeout=0.05).epoch(0))
    finally:
        source.gate.set()


def test_threads_compute_alone_and_others_as_before() -> None:
    """torch's operations in a loader thread must not each start a team of threads; nobody else is touched."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        seen: queue.SimpleQueue[int] = queue.SimpleQueue()
        both = threading.Barrier(2)  # so that each thread answers once

        def answer() -> None:
            both.wait()
            seen.put(torch.get_num_threads())

        with crew.Crew(2) as threads:
            threads.submit(answer)
            threads.submit(answer)
            assert [seen.get(), seen.get()] == [1, 1]
            other = threading.Thread(target=lambda: seen.put(torch.get_num_threads()), daemon=True)
            other.start()
            assert (seen.get(), torch.get_num_threads()) == (3, 3)
    finally:
        torch.set_num_threads(before)


def test_leaving_the_loop_a_thousand_times_leaks_nothing() -> None:
    source = arrays(8, side=4)
    loads = [loader(source, batch=2, size=2), loader(Broken({0}, n=8), batch=2, size=2)]

    def leave(times: int) -> None:
        for turn in range(times):
            batches = loads[0].epoch(turn)
            next(batches)
            if turn % 3 == 0:
                batches.close()  # type: ignore[attr-defined]
            elif turn % 3 == 1:
                del batches
            else:
                with pytest.raises(InputError):
                    list(loads[1].epoch(turn))

    leave(10)
    gc.collect()
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    leave(1000)
    gc.collect()
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before


@pytest.mark.parametrize("state", ["left", "in use", "stuck", "error"])
def test_the_process_exits_cleanly(state: str, tmp_path: Path) -> None:
    """In mid-epoch, with batches in the making and a generator still alive, and even with a thread that never
    returns.
    """
    program = f"""
import sys, threading
from moco.data import crew
from tests.data.test_loader import *
crew.JOIN_SECONDS = 0.1
source = Stuck() if {state!r} == "stuck" else arrays(2000, side=64)
batches = loader(source, batch=4, size=64, prefetch=40).epoch(0)
first = next(batches)
if {state!r} == "left":
    batches.close()
if {state!r} == "error":
    raise ValueError("as it happens")
print("ready")
"""
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    if state == "error":
        assert run.returncode == 1
        assert run.stderr.rstrip().endswith("ValueError: as it happens")
    else:
        assert (run.returncode, run.stdout) == (0, "ready\n"), run.stderr


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than prefetch + 2 batches at a time, the consumer's included; over epochs nothing piles up."""
    made: list[weakref.ref[torch.Tensor]] = []
    begin = _Filling.__init__

    def counted(self: _Filling, *args: Any) -> None:
        begin(self, *args)
        made.append(weakref.ref(self.crops))

    monkeypatch.setattr(_Filling, "__init__", counted)
    for prefetch in (1, 3):
        load = loader(arrays(), batch=2, prefetch=prefetch)
        most = 0
        for epoch in range(3):
            for _ in load.epoch(epoch):
                most = max(most, sum(ref() is not None for ref in made))
        assert most <= prefetch + 2
    gc.collect()
    assert sum(ref() is not None for ref in made) <= 1  # `_`, the last batch


def test_workers_follow_affinity_and_local_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    assert [worker_count(w) for w in (None, 0, 1, 5, 32)] == [12, 1, 1, 5, 12]
    with inside(World(9, 16, local_rank=1, local_size=8)):
        assert worker_count(32) == 1
    with inside(World(9, 16, local_rank=1, local_size=5)):
        assert loader(arrays(), workers=32).workers == 2
    with inside(World(9, 16, local_rank=1, local_size=3)):
        assert [worker_count(w) for w in (1, 3, 4, 7, 32)] == [1, 1, 2, 3, 4]  # of the node, as MoCo's -j
    with inside(World(9, 64, local_rank=1, local_size=64)):
        assert worker_count() == 1


def test_a_sampler_of_another_data_set_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="10 samples"):
        Loader(arrays(), Sampler(10, 2, 0), size=8)


@pytest.mark.gpu
def test_batches_on_a_gpu() -> None:
    there = list(itertools.islice(loader(arrays(), device="cuda").epoch(0), 3))
    here = list(itertools.islice(loader(arrays()).epoch(0), 3))
    assert {x.device.type for b in there for x in (b.crops, b.index, b.labels)} == {"cuda"}
    assert all(same(Batch(a.crops.cpu(), a.index.cpu(), a.labels.cpu()), b) for a, b in zip(there, here, strict=True))


def test_memory_is_used_again_only_when_no_tensor_shares_it() -> None:
    memory = BatchMemory(most=2, pinned=False)
    first = memory.take((4, 5))
    row = first[1]
    address = first.data_ptr()
    del first
    assert memory.take((4, 5)).data_ptr() != address  # `row` is still in it
    view = row.numpy()
    del row
    assert memory.take((4, 5)).data_ptr() != address  # a NumPy view of it, too
    del view
    assert address in {memory.take((4, 5)).data_ptr() for _ in range(3)} or address in {
        block.ctypes.data for block in memory.free
    }
