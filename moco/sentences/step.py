"""One optimiser step on a window of sentences."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from moco import metrics
from moco.distributed import rank, world_size
from moco.distributed.global_batch import GlobalBatch
from moco.losses.neighbours import NeighbourLoss
from moco.sentences.network import SentencePair


class TrainingStep:
    """Encode, loss, backward, clip, Adam. A step whose gradient is not finite is not applied, and counted.

    model: a SentencePair, or DistributedDataParallel around one. sizes: sentences of each rank.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: NeighbourLoss,
        optimizer: torch.optim.Optimizer,
        across: GlobalBatch,
        sizes: list[int],
        grad_clip: float | None,
    ) -> None:
        self.model, self.loss, self.optimizer, self.grad_clip = model, loss, optimizer, grad_clip
        self.pair: SentencePair = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model  # type: ignore[assignment]
        self.device = next(self.pair.parameters()).device
        # DistributedDataParallel averages over ranks; this weight makes it the mean over sentences
        self.weight = sizes[rank()] * world_size() / sum(sizes)
        self.min_size = min(sizes)
        across.sizes = sizes
        self.steps = torch.zeros((), dtype=torch.long, device=self.device)
        self.first_bad = torch.zeros((), dtype=torch.long, device=self.device)  # of `steps`, from 1; 0: none

    def __call__(self, sentences: PackedSequence, measure: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One step on this rank's stretch. Returns means on the device: the loss and its parts; and, if `measure`,
        alignment of adjacent sentences and uniformity of f."""
        self.optimizer.zero_grad(set_to_none=True)
        f, g = self.model(sentences)
        loss, logs = self.loss(f, g)
        (loss * self.weight).backward()
        self._update()
        measured = {}
        if measure and self.min_size > 1:
            measured = {"alignment": metrics.alignment(f[:-1], g[1:]), "uniformity": metrics.uniformity(f)}
        return {"loss": loss.detach(), **logs}, measured

    def _update(self) -> None:
        parameters = [p for p in self.pair.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.grad_clip:
            nn.utils.clip_grads_with_norm_(parameters, self.grad_clip, norm)
        self.steps += 1
        bad = ~norm.isfinite()
        self.first_bad = torch.where((self.first_bad == 0) & bad, self.steps, self.first_bad)
        # fused Adam looks at this before it applies a step: no wait for the device
        self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        self.optimizer.step()

    def not_applied(self) -> int:
        """The first step since the start of this process that was not applied, from 1; 0 if all were. Waits for the
        device."""
        return int(self.first_bad)
