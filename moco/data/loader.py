"""Loads uint8 crops, sample indices and labels of any source.

Decoding and resizing release the interpreter lock, so threads are as fast as processes. They need no fork, no pickle,
no shared memory and no signals, and their errors are raised where the batch is asked for. A sample is decoded once for
its V crops. The crops depend only on (seed, epoch, index, view).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from moco.data.batch_memory import BatchMemory
from moco.data.boxes import DRAWS, Box, Size, centre_box, random_box, reduction, rescale, snap
from moco.data.crops import SmallCrops
from moco.data.decode import BadImage, resample
from moco.data.sampler import Sampler
from moco.data.source import Source, channels_of
from moco.data.threads import Crew, worker_count
from moco.errors import InputError
from moco.randomness import Purpose, stream_key, uniform

ROWS_PER_TASK = 4  # samples a thread takes at a time: more would spread a batch badly, fewer use the queue too often
MOST_BAD_IN_A_ROW = 100


@dataclass(frozen=True)
class Batch:
    """Holds n samples, V crops of each, on the loader's device."""

    crops: Tensor  # uint8 [n, V, S, S, C]
    index: Tensor  # int64 [n], positions in the source
    labels: Tensor  # int64 [n], -1 without a label
    small: Tensor | None = None  # uint8 [n, W, s, s, C], the small crops of multi-crop


class Loader:
    """Cuts batches of crops on threads, epoch by epoch.

    views: number of random-resized crops of a sample. scale, ratio: as in torchvision.
    eval_crop: for evaluation, the side of the central square as a share of the shorter side.
    small: small crops of the same decoded image. Their boxes are those of views V, V + 1, ...
    workers: wished number of threads. `worker_count` limits it, and `loader.workers` is the result.
    skip_bad_images: replaces a bad image by the next good one, so batches keep their shape. See `bad_samples`.
    Host memory is at most (prefetch + 2) · n · V · S² · C bytes for batches of n, besides small crops, and for each
    worker one file and about seven bytes per decoded pixel (Pillow holds four, the array three).
    """

    def __init__(
        self,
        source: Source,
        sampler: Sampler,
        *,
        size: int,
        views: int = 2,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        eval_crop: float | None = None,
        small: SmallCrops | None = None,
        workers: int | None = None,
        device: str | torch.device = "cpu",
        seed: int = 0,
        prefetch: int = 2,
        skip_bad_images: bool = False,
        timeout: float = 600.0,
    ) -> None:
        if len(source) != sampler.n:
            raise ValueError(f"a sampler of {sampler.n} samples for a source of {len(source)}")
        self.source, self.sampler = source, sampler
        self.size, self.views, self.scale, self.ratio, self.eval_crop = size, views, scale, ratio, eval_crop
        self.small = small
        self.workers = worker_count(workers)
        self.device = torch.device(device)
        self.seed, self.prefetch, self.timeout = seed, max(1, prefetch), timeout
        self.skip_bad_images = skip_bad_images
        self.bad: dict[int, str] = {}  # index -> why it could not be read
        self._memory = BatchMemory(self.prefetch + 2, pinned=self.device.type == "cuda")
        self._small_memory = BatchMemory(self.prefetch + 2, pinned=self.device.type == "cuda")
        self._side_stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def __len__(self) -> int:
        """Returns the number of batches of an epoch."""
        return self.sampler.steps

    @property
    def bad_samples(self) -> int:
        """Returns the number of samples that this process could not read."""
        return len(self.bad)

    def epoch(self, epoch: int, start_step: int = 0) -> Generator[Batch, None, None]:
        """Yields the batches from `start_step` on, as an uninterrupted epoch does.

        It may be left at any time. Raises InputError, with the sample, if one cannot be read or a thread is stuck.
        """
        waiting: deque[_Filling] = deque()
        steps = iter(range(start_step, len(self)))
        with Crew(self.workers) as crew:
            for step in islice(steps, self.prefetch):
                waiting.append(self._begin(crew, epoch, step))
            while waiting:
                filling = waiting.popleft()
                for step in islice(steps, 1):
                    waiting.append(self._begin(crew, epoch, step))
                filling.wait(self.timeout, self.source)
                yield filling.deliver()

    def _begin(self, crew: Crew, epoch: int, step: int) -> _Filling:
        filling = _Filling(self, epoch, self.sampler.batch(epoch, step))
        for start in range(0, len(filling.index), ROWS_PER_TASK):
            crew.submit(partial(filling.fill, range(start, min(start + ROWS_PER_TASK, len(filling.index)))))
        return filling

    def draws(self, epoch: int, index: np.ndarray) -> np.ndarray:
        """Returns float32 [n, V + W, DRAWS]: the random numbers for boxes."""
        if self.eval_crop is not None:
            return np.empty((len(index), self.views, 0), np.float32)
        views = range(self.views + (self.small.number if self.small else 0))
        keys = [stream_key(self.seed, epoch, Purpose.CROP, view) for view in views]
        return np.stack([uniform(key, index, DRAWS) for key in keys], axis=1)

    def boxes(self, draws: np.ndarray, size: Size) -> list[Box]:
        """Returns each view's box, small ones last. draws: [V + W, DRAWS]."""
        if self.eval_crop is not None:
            return [centre_box(size, self.eval_crop)] * self.views
        scales = [self.scale] * self.views + ([self.small.scale] * self.small.number if self.small else [])
        return [random_box(row, size, scale, self.ratio) for row, scale in zip(draws.tolist(), scales, strict=True)]

    def cut(self, index: int, draws: np.ndarray, out: Tensor, small: Tensor | None = None) -> None:
        """Decodes one sample and writes its crops.

        out: uint8 [V, S, S, C]. small: uint8 [W, s, s, C].
        """
        picture = self.source.open(index)
        boxes = [rescale(box, picture.size, picture.stored) for box in self.boxes(draws, picture.size)]
        k = reduction(boxes[: self.views], self.size)
        k = min(k, reduction(boxes[self.views :], self.small.size)) if self.small else k
        boxes = [snap(box, k) for box in boxes]
        rows = (min(top for top, *_ in boxes), max(top + h for top, _, h, _ in boxes))
        pixels = picture.decode(k, rows)
        if pixels.array.shape[-1] != out.shape[-1]:
            raise InputError(
                f"image {index} ({self.source.name(index)}) has {pixels.array.shape[-1]} channels, and the data set"
                f" says {out.shape[-1]}: give the source an attribute `channels`, and pass --channels"
            )
        k = pixels.reduction
        for (top, left, h, w), crop in zip(boxes, [*out, *(() if small is None else small)], strict=True):
            resample(pixels.array, (top // k - pixels.top, left // k, h // k, w // k), crop)


class _Filling:
    """Holds a batch that threads are working on."""

    def __init__(self, loader: Loader, epoch: int, index: np.ndarray) -> None:
        self.loader, self.epoch = loader, epoch
        self.index = index.copy()  # another sample replaces a bad one
        self.draws = loader.draws(epoch, index)
        shape = (len(index), loader.views, loader.size, loader.size, channels_of(loader.source))
        self.crops = loader._memory.take(shape)
        self.small: Tensor | None = None
        if loader.small is not None:
            shape = (len(index), loader.small.number, loader.small.size, loader.small.size, channels_of(loader.source))
            self.small = loader._small_memory.take(shape)
        self.errors: dict[int, BaseException] = {}
        self.at_work: dict[int, int] = {}  # thread -> the sample it reads
        self.left = len(index)
        self.lock = threading.Lock()
        self.done = threading.Event()
        self.batch: Batch | None = None
        self.shipped: torch.cuda.Event | None = None
        if not self.left:
            self._ship()

    def fill(self, rows: range) -> None:
        """Fills rows on a thread. `wait` raises the errors."""
        for row in rows:
            try:
                self._fill_one(row)
            except BaseException as error:
                self.errors[row] = error
        with self.lock:
            self.at_work.pop(threading.get_ident(), None)
            self.left -= len(rows)
            last = self.left == 0  # the thread of the last crop copies the batch
        if last:
            try:
                if not self.errors:
                    self._ship()
            except BaseException as error:
                self.errors[0] = error
            self.done.set()

    def _fill_one(self, row: int) -> None:
        loader, source = self.loader, self.loader.source
        index, draws = int(self.index[row]), self.draws[row]
        for _ in range(MOST_BAD_IN_A_ROW):
            self.at_work[threading.get_ident()] = index
            try:
                loader.cut(index, draws, self.crops[row], None if self.small is None else self.small[row])
            except BadImage as problem:
                if not loader.skip_bad_images:
                    raise InputError(
                        f"image {index} ({source.name(index)}) cannot be read: {problem}. "
                        "Repair or remove it, or pass --skip-bad-images to go on without such files"
                    ) from problem
                loader.bad[index] = str(problem)
                index = (index + 1) % len(source)
                draws = loader.draws(self.epoch, np.array([index]))[0]
            except Exception as error:
                if hasattr(error, "add_note"):  # since Python 3.11
                    error.add_note(f"while loading image {index} ({source.name(index)})")
                raise
            else:
                self.index[row] = index
                return
        raise InputError(
            f"{MOST_BAD_IN_A_ROW} images in a row cannot be read, up to {source.name(index)}: check the data"
        )

    def _ship(self) -> None:
        """Copies the batch to the device, while earlier steps compute."""
        loader = self.loader
        index = torch.from_numpy(self.index)
        labels = torch.from_numpy(loader.source.labels[self.index])
        if loader._side_stream is None:
            small = None if self.small is None else self.small.to(loader.device)
            crops, index, labels = (x.to(loader.device) for x in (self.crops, index, labels))
            self.batch = Batch(crops, index, labels, small)
        else:
            with torch.cuda.device(loader.device), torch.cuda.stream(loader._side_stream):
                host = (self.crops, index.pin_memory(), labels.pin_memory())
                small = None if self.small is None else self.small.to(loader.device, non_blocking=True)
                crops, index, labels = (x.to(loader.device, non_blocking=True) for x in host)
                self.batch = Batch(crops, index, labels, small)
                self.shipped = loader._side_stream.record_event()
        self.done.set()

    def wait(self, timeout: float, source: Source) -> None:
        """Waits for all samples. Raises the error of the first bad one.

        Raises InputError after `timeout` seconds in which no sample came.
        """
        left = -1
        while not self.done.wait(timeout):
            if self.left == left:
                names = ", ".join(source.name(index) for index in list(self.at_work.values())[:4])
                raise InputError(
                    f"no image could be read for {timeout:.0f} s (at {names or 'nothing'}): "
                    "check the disk or network that holds the data"
                )
            left = self.left
        if self.errors:
            raise self.errors[min(self.errors)]

    def deliver(self) -> Batch:
        """Returns the batch, safe to use on the current stream."""
        assert self.batch is not None
        if self.shipped is not None:
            current = torch.cuda.current_stream(self.loader.device)
            current.wait_event(self.shipped)
            for x in filter(torch.is_tensor, vars(self.batch).values()):
                x.record_stream(current)
        return self.batch
