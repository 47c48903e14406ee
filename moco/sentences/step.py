"""Takes one optimiser step on a window of sentences."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from moco import metrics
from moco.distributed import rank, world_size
from moco.distributed.global_batch import GlobalBatch
from moco.losses.neighbours import NeighbourLoss
from moco.pretrain.optimiser import GuardedOptimizer
from moco.sentences.network import SentencePair


class TrainingStep:
    """Takes one step: encoders, loss, backward pass, clipping, Adam.

    A step whose gradient is not finite is counted but not applied. model: a SentencePair, or DistributedDataParallel
    around one. sizes: sentences of each rank.
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
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.pair: SentencePair = (
            model.module  # type: ignore[assignment]
            if isinstance(model, nn.parallel.DistributedDataParallel)
            else model
        )
        self.device = next(self.pair.parameters()).device
        # DistributedDataParallel averages over ranks; this weight makes it the mean over sentences
        self.weight = sizes[rank()] * world_size() / sum(sizes)
        self.min_size = min(sizes)
        across.sizes = sizes
        self.steps = 0  # since the start of this process
        self.guard = GuardedOptimizer(optimizer, self.pair.parameters(), self.device, grad_clip=grad_clip or None)

    def __call__(self, sentences: PackedSequence, measure: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Takes one step on this rank's part of the window.

        Returns (loss and its parts, measures), as means on the device. The measures are the alignment of adjacent
        sentences and the uniformity of f. There are none without `measure`, or if a rank has only one sentence.
        """
        self.guard.begin()
        f, g = self.model(sentences)
        loss, logs = self.loss(f, g)
        self.guard.backward(loss * self.weight)
        self.steps += 1
        self.guard.step(loss.detach(), self.steps)
        measured = {}
        if measure and self.min_size > 1:
            measured = {"alignment": metrics.alignment(f[:-1], g[1:]), "uniformity": metrics.uniformity(f)}
        return {"loss": loss.detach(), **logs}, measured

    def not_applied(self) -> int:
        """Returns the first step not applied since the last call.

        It counts from 1; 0 if all were applied. It waits for the device.
        """
        return self.guard.not_applied()[1]
