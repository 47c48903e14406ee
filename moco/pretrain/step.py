"""One optimiser step of MoCo, from uint8 crops to the updated queue, with nothing in it that waits for the device."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moco import metrics
from moco.builder import MoCo
from moco.data.augment import Augment
from moco.data.loader import Batch
from moco.distributed import all_reduce_sum, gather_rows, rank, shares, world_size
from moco.distributed.global_batch import GlobalBatch
from moco.losses import Loss
from moco.pretrain.optimiser import check_layouts, zero_momentum
from moco.timing import stage

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class _Part(NamedTuple):
    loss: Tensor
    logs: dict[str, Tensor]
    q: Tensor
    k: Tensor


class TrainingStep:
    """Holds what a step needs, and counts the steps that were not applied because a gradient was not finite.

    model: a MoCo, or DistributedDataParallel around one. across: the loss's view of the other ranks, told each batch's
    sizes. accum_steps: parts a batch is split into; the key encoder and the queue stand still until all are through.
    symmetric: the mean of two losses, in which the views change places; both views' keys are enqueued, view 1's first.
    go_on: training may go on after a step that was not applied, so BatchNorm's statistics must not keep what it left.
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
    ) -> None:
        self.model, self.loss, self.optimizer, self.augment, self.across = model, loss, optimizer, augment, across
        self.moco: MoCo = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model  # type: ignore[assignment]
        self.accum_steps, self.grad_clip = accum_steps, grad_clip
        self.directions = ((0, 1), (1, 0)) if symmetric else ((0, 1),)  # (view of the queries, view of the keys)
        self.device = self.moco.queue.device
        self.amp_dtype = AMP_DTYPES.get(amp)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp == "fp16")
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.bad_steps = torch.zeros((), dtype=torch.long, device=self.device)
        self.first_bad = torch.zeros((), dtype=torch.long, device=self.device)  # as MoCo.step counts, from 1; 0: none
        zero_momentum(optimizer)
        self._layouts_checked = False
        batchnorm = [b for name, b in self.moco.named_buffers() if "running_" in name] if go_on else []
        self._running = [(buffer, torch.empty_like(buffer)) for buffer in batchnorm]

    def __call__(
        self, batch: Batch, epoch: int, sizes: list[int], measure: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One step on `batch`, this rank's part; `sizes` are every rank's numbers of samples, so that all weigh the
        same.

        Returns means over this rank's samples, on the device: the loss and its parts; and, if `measure`, accuracy of
        telling the key from the queue, alignment and uniformity of the batch.
        """
        with stage("EMA"):
            self.moco.update_key_encoder()
        for buffer, before in self._running:
            before.copy_(buffer)
        self.optimizer.zero_grad(set_to_none=True)
        outputs: list[list[_Part]] = [[] for _ in self.directions]
        parts = [shares(size, self.accum_steps) for size in sizes]
        fields = [field.split(parts[rank()]) for field in (batch.crops, batch.index, batch.labels)]
        for i, part in enumerate(zip(*fields, strict=True)):
            for views, done in zip(self.directions, outputs, strict=True):
                last = i == self.accum_steps - 1 and views == self.directions[-1]
                with nullcontext() if last or self.model is self.moco else self.model.no_sync():  # type: ignore[operator]
                    done.append(self._forward_backward(Batch(*part), epoch, views, [p[i] for p in parts], sum(sizes)))
        with stage("optimiser"):
            self._update(torch.stack([out.loss for done in outputs for out in done]).sum())

        q, keys = torch.cat([out.q for out in outputs[0]]), [torch.cat([out.k for out in done]) for done in outputs]
        # before the queue holds these very keys
        measured = self._measure(q, keys[0], pairs=min(sizes) > 1) if measure else {}
        if self.moco.K:
            labels = gather_rows(batch.labels, sizes)
            with stage("queue"):
                self.moco.enqueue(torch.cat([gather_rows(k, sizes) for k in keys]), labels.repeat(len(keys)))

        weights = [n / (len(q) * len(outputs)) for n in parts[rank()]] * len(outputs)
        values = [{"loss": out.loss, **out.logs} for done in outputs for out in done]
        means = {
            name: torch.stack([v[name] * w for v, w in zip(values, weights, strict=True)]).sum() for name in values[0]
        }
        return means, measured

    def _measure(self, q: Tensor, k: Tensor, pairs: bool) -> dict[str, Tensor]:
        """`pairs`: there are two samples on every rank. All ranks must log the same names."""
        values = {"alignment": metrics.alignment(q, k)}
        if self.moco.K:
            values = {**metrics.contrastive_accuracy(q, k, self.moco.queue), **values}
        return {**values, "uniformity": metrics.uniformity(q)} if pairs else values

    def _forward_backward(
        self, part: Batch, epoch: int, views: tuple[int, int], sizes: list[int], total: int
    ) -> _Part:
        im_q = self._images(epoch, views[0], part.crops[:, views[0]], part.index)
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            prepare_k = partial(self._images, epoch, views[1])
            q, k = self.model(im_q, (part.crops[:, views[1]], part.index), prepare_k, sizes)
        self.across.sizes = sizes
        with stage("head"):
            loss, logs = self.loss(q, k, self.moco.queue, part.labels, self.moco.queue_labels)
        # DDP averages over ranks; this weight makes it the mean over samples, and over directions
        weight = len(part.index) * world_size() / (total * len(self.directions))
        with stage("backward"):
            self.scaler.scale(loss * weight).backward()
        return _Part(loss.detach(), logs, q.detach(), k.detach())

    def _images(self, epoch: int, view: int, crops: Tensor, index: Tensor) -> Tensor:
        with stage("augmentation"):
            return self.augment(crops, index, epoch, view).contiguous(memory_format=self.memory_format)

    def _update(self, loss: Tensor) -> None:
        """The optimiser's step; not applied, and counted, if the gradient is not finite. Decided on the device."""
        if not self._layouts_checked:  # once: what a resume has loaded does not change its layout later
            check_layouts(self.optimizer)
            self._layouts_checked = True
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        parameters = [p for p in self.moco.encoder_q.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.grad_clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.grad_clip, norm)
        if self.scaler.is_enabled():
            bad = ~all_reduce_sum(loss).isfinite()  # a gradient alone may overflow: that only lowers the scale
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            bad = ~norm.isfinite()
            self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # what fused SGD asks before it applies a step
            self.optimizer.step()
        self.first_bad = torch.where((self.first_bad == 0) & bad, self.moco.step, self.first_bad)
        self.bad_steps += bad
        for buffer, before in self._running:
            buffer.copy_(torch.where(bad, before, buffer))

    def not_applied(self) -> tuple[int, int]:
        """(steps not applied since the run began, the first one since the last call or 0). Waits for the device; the
        ranks' answers agree."""
        first = int(self.first_bad)
        self.first_bad.zero_()
        return int(self.bad_steps), first
