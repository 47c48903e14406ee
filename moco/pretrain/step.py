"""Takes one optimiser step of MoCo, from uint8 crops to the queue.

Nothing in it waits for the device.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moco import metrics
from moco.builder import MoCo
from moco.data.augment import Augment
from moco.data.loader import Batch
from moco.distributed import gather_rows, rank, shares, world_size
from moco.distributed.global_batch import GlobalBatch
from moco.losses import Loss
from moco.pretrain.loss_state import LossState
from moco.pretrain.online_probe import OnlineProbe
from moco.pretrain.optimiser import GuardedOptimizer
from moco.timing import stage

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class _Part(NamedTuple):
    loss: Tensor
    logs: dict[str, Tensor]
    q: Tensor
    k: Tensor
    features: Tensor | None = None  # for the online classifier


class TrainingStep:
    """Takes one optimiser step of MoCo.

    model: a MoCo, or DistributedDataParallel around one. loss: see `moco.losses.Loss`. If it is an nn.Module with
    parameters, these must be in `optimizer` too. across: the other ranks for the loss; each step sets its sizes.
    accum_steps: parts that a batch is split into. The key encoder and the queue do not change between the parts.

    symmetric: the loss is the mean of two losses, in which the views change places. With `keys` 'batch' it is their
    sum, as in MoCo v3. Both views' keys are enqueued, view 1's first. If the model has two queues, each view's keys go
    into its own.

    If a batch has small crops (multi-crop), each of them is a query in every direction. Then the mean is over all
    these losses.

    online_probe: a classifier that is trained on the first direction's features, after the encoder's own step. go_on:
    training may go on after a step that was not applied. Then BatchNorm's statistics are put back after such a step.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        augment: Augment,
        across: GlobalBatch,
        *,
        accum_steps: int = 1,
        amp: str = "off",
        grad_clip: float | None = None,
        channels_last: bool = True,
        go_on: bool = False,
        symmetric: bool = False,
        online_probe: OnlineProbe | None = None,
    ) -> None:
        self.model = model
        self.online_probe = online_probe
        self.loss = loss
        self.optimizer = optimizer
        self.augment = augment
        self.across = across
        self.moco: MoCo = (
            model.module  # type: ignore[assignment]
            if isinstance(model, nn.parallel.DistributedDataParallel)
            else model
        )
        self.accum_steps = accum_steps
        self.directions = ((0, 1), (1, 0)) if symmetric else ((0, 1),)  # (view of the queries, view of the keys)
        self.device = self.moco.queue.device
        self.amp_dtype = AMP_DTYPES.get(amp)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.loss_state = LossState(loss)
        self.guard = GuardedOptimizer(
            optimizer,
            [*(p for p in model.parameters() if p.requires_grad), *self.loss_state.parameters],
            self.device,
            amp=amp,
            grad_clip=grad_clip,
            keep=[*self._batchnorm_statistics(), *self.loss_state.buffers] if go_on else [],
        )

    def __call__(
        self, batch: Batch, epoch: int, sizes: list[int], measure: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Takes one step on `batch`, this rank's samples.

        sizes: number of samples on each rank, so that all samples have the same weight.
        Returns (loss and its parts, measures), as means over this rank's samples on the device. The online probe's
        values are among the parts. The measures are the accuracy of telling the key from the queue, alignment and
        uniformity of the batch. Without `measure` there are none.
        """
        parts = [shares(size, self.accum_steps) for size in sizes]
        with stage("EMA"):
            self.moco.update_key_encoder()
        self.guard.begin()
        outputs = self._gradients(batch, epoch, sizes, parts)
        with stage("optimiser"):
            self.loss_state.average_gradients()
            self.guard.step(torch.stack([out.loss for done in outputs for out in done]).sum(), self.moco.step)
            self.loss_state.average_buffers()

        q = torch.cat([out.q for out in outputs[0]])
        keys = [torch.cat([out.k for out in done]) for done in outputs[: len(self.directions)]]
        # this must come before the queue holds these keys
        measured = self._measure(q, keys[0], pairs=min(sizes) > 1) if measure else {}
        if self.moco.K:
            self._enqueue(keys, batch.labels, sizes)
        means = self._means(outputs, parts[rank()])
        if self.online_probe is not None:
            features = torch.cat([out.features for out in outputs[0] if out.features is not None])
            means |= self.online_probe.step(features, batch.labels, sum(sizes))
        return means, measured

    def _gradients(self, batch: Batch, epoch: int, sizes: list[int], parts: list[list[int]]) -> list[list[_Part]]:
        """Computes keys, losses and gradients of the whole batch, part after part.

        Returns the parts' outputs for each direction, then for each direction and small crop. Sets `self.share`, the
        weight of each of these losses. parts: for each rank, the number of samples in each part.
        """
        small = 0 if batch.small is None else batch.small.shape[1]
        outputs: list[list[_Part]] = [[] for _ in range(len(self.directions) * (1 + small))]
        self.share = (len(self.directions) if self.moco.keys == "batch" else 1) / len(outputs)
        fields = [field.split(parts[rank()]) for field in (batch.crops, batch.index, batch.labels)]
        for number, part in enumerate(zip(*fields, strict=True)):
            of_ranks = [of_rank[number] for of_rank in parts]
            last_part = number == self.accum_steps - 1
            for views, of_direction in zip(self.directions, outputs, strict=False):
                with self._reduced(last_part and not small and views == self.directions[-1]):
                    of_direction.append(self._forward_backward(Batch(*part), epoch, views, of_ranks, sum(sizes)))
            if batch.small is not None:
                crops = batch.small.split(parts[rank()])[number]
                keys_of_part = [done[number].k for done in outputs[: len(self.directions)]]
                with self._reduced(last_part):
                    losses = self._small_crops(crops, Batch(*part), epoch, keys_of_part, of_ranks, sum(sizes))
                for done, out in zip(outputs[len(self.directions) :], losses, strict=True):
                    done.append(out)
        return outputs

    def _enqueue(self, keys: list[Tensor], own_labels: Tensor, sizes: list[int]) -> None:
        """Puts the keys of all ranks into the queue.

        keys: of each direction, view 1's first, [n, dim]. own_labels: int64 [n]. sizes: number of samples on each rank.
        With one queue the keys enter in this order. With two, each view's keys go into their own.
        """
        labels = gather_rows(own_labels, sizes)
        of_all_ranks = [gather_rows(k, sizes) for k in keys]
        with stage("queue"):
            if self.moco.queue_of_view_0 is not None:
                self.moco.enqueue(of_all_ranks[0], labels, of_all_ranks[1])
            else:
                self.moco.enqueue(torch.cat(of_all_ranks), labels.repeat(len(keys)))

    def _forward_backward(self, part: Batch, epoch: int, views: tuple[int, int], sizes: list[int], total: int) -> _Part:
        """Computes keys, loss and gradients for one part of the batch.

        sizes: samples of this part on each rank. total: samples of the whole batch of all ranks.
        """
        query_view, key_view = views
        im_q = self._images(epoch, query_view, part.crops[:, query_view], part.index)
        prepare_k = partial(self._images, epoch, key_view)
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            q, k = self.model(im_q, (part.crops[:, key_view], part.index), prepare_k, sizes)
        features = self.online_probe.take(len(part.index)) if self.online_probe is not None else None
        self.across.sizes = sizes
        with stage("head"):
            loss, logs = self.loss(q, k, self.moco.queue_for(key_view), part.labels, self.moco.queue_labels)
        with stage("backward"):
            self.guard.backward(loss * self._weight(part, total))
        return _Part(loss.detach(), logs, q.detach(), k.detach(), features)

    def _small_crops(
        self, crops: Tensor, part: Batch, epoch: int, keys: list[Tensor], sizes: list[int], total: int
    ) -> list[_Part]:
        """Computes losses and gradients for small crops [n, W, s, s, C].

        They are queries for the keys of each direction. There is one forward and one backward pass for all.
        """
        n, count = crops.shape[:2]
        views = range(part.crops.shape[1], part.crops.shape[1] + count)
        images = torch.cat([self._images(epoch, v, c, part.index) for v, c in zip(views, crops.unbind(1), strict=True)])
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            q, _ = self.model(images, None)
        self.across.sizes = sizes
        outputs = []
        with stage("head"):
            for (_, key_view), k in zip(self.directions, keys, strict=True):
                queue = self.moco.queue_for(key_view)
                for of_crop in q.split(n):
                    loss, logs = self.loss(of_crop, k, queue, part.labels, self.moco.queue_labels)
                    outputs.append(_Part(loss, logs, of_crop.detach(), k))
        with stage("backward"):
            self.guard.backward(torch.stack([out.loss for out in outputs]).sum() * self._weight(part, total))
        return [out._replace(loss=out.loss.detach()) for out in outputs]

    def _weight(self, part: Batch, total: int) -> float:
        """Returns the weight of a loss for the mean over `total` samples.

        DDP averages over ranks, so the share of the samples alone would not be enough.
        """
        return self.share * len(part.index) * world_size() / total

    def _reduced(self, reduce: bool) -> AbstractContextManager[None]:
        """Returns the context of a backward pass.

        The ranks' gradients are averaged in it if `reduce` is true.
        """
        return nullcontext() if reduce or self.model is self.moco else self.model.no_sync()  # type: ignore[operator]

    def _batchnorm_statistics(self) -> list[Tensor]:
        return [buffer for name, buffer in self.moco.named_buffers() if "running_" in name]

    def _images(self, epoch: int, view: int, crops: Tensor, index: Tensor) -> Tensor:
        with stage("augmentation"):
            return self.augment(crops, index, epoch, view).contiguous(memory_format=self.memory_format)

    def _means(self, outputs: list[list[_Part]], sizes: list[int]) -> dict[str, Tensor]:
        """Returns means of the loss and its parts over this rank's batch.

        sizes: samples of each part of the batch.
        """
        weights = [self.share * n / sum(sizes) for n in sizes] * len(outputs)
        values = [{"loss": out.loss, **out.logs} for done in outputs for out in done]
        return {
            name: torch.stack([v[name] * w for v, w in zip(values, weights, strict=True)]).sum() for name in values[0]
        }

    def _measure(self, q: Tensor, k: Tensor, pairs: bool) -> dict[str, Tensor]:
        """Returns the measures of queries and keys [n, C].

        pairs: every rank has at least two samples. Without them there is no uniformity on any rank, because all ranks
        must log the same names.
        """
        values = {"alignment": metrics.alignment(q, k)}
        if self.moco.K:
            values = {**metrics.contrastive_accuracy(q, k, self.moco.queue), **values}
        return {**values, "uniformity": metrics.uniformity(q)} if pairs else values
