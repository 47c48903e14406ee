"""Runs one training step as in MoCo's paper, in plain PyTorch.

Source: He et al. 2020, Algorithm 1.
benchmarks/training_step.py compares the speed of the trainer's step with it.
tests/pretrain/test_reference.py tests that the trainer's step gives the same result.
It is fp32 and eager. It has an all-gather for shuffle-BN, a loop over the parameters for the momentum update, a clone
of the queue and all N × (K+1) logits.
The loss is InfoNCE or, with weights, Wang & Isola's align + uniform over the same queue.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class ReferenceStep:
    """Trains an encoder with MoCo, one step a call.

    encoder: maps images [N, 3, H, W] to features [N, dim].
    K: length of the queue, a multiple of the global batch.
    """

    def __init__(
        self,
        encoder: nn.Module,
        dim: int,
        K: int,
        *,
        m: float = 0.999,
        T: float = 0.07,
        weights: tuple[float, float, float] = (1.0, 0.0, 0.0),  # of InfoNCE, align (α = 2), uniform
        t: float = 3.0,
        lr: float = 0.03,
    ) -> None:
        self.f_q, self.f_k = encoder, copy.deepcopy(encoder)
        self.f_k.requires_grad_(False)
        self.K, self.m, self.T, self.weights, self.t = K, m, T, weights, t
        device = next(encoder.parameters()).device
        self.queue = F.normalize(torch.randn(dim, K, device=device), dim=0)  # C×K
        self.at = 0
        self.optimizer = torch.optim.SGD(
            self.f_q.parameters(), lr, momentum=0.9, weight_decay=1e-4, foreach=False, fused=False
        )

    def __call__(self, x_q: Tensor, x_k: Tensor) -> float:
        """Trains on two views of the same images and returns the loss.

        It waits for the device to read the loss, like scripts that print it.
        """
        q = F.normalize(self.f_q(x_q), dim=1)  # N×C
        with torch.no_grad():
            for p_q, p_k in zip(self.f_q.parameters(), self.f_k.parameters(), strict=True):
                p_k.data = p_k.data * self.m + p_q.data * (1 - self.m)
            k = shuffled(lambda x: F.normalize(self.f_k(x), dim=1), x_k)  # N×C
        loss = self.loss(q, k, self.queue.clone().detach())
        self.optimizer.zero_grad()
        loss.backward()
        if dist.is_initialized():
            for p in self.f_q.parameters():
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()
        self.optimizer.step()
        keys = all_gather(k)
        self.queue[:, self.at : self.at + len(keys)] = keys.T
        self.at = (self.at + len(keys)) % self.K
        return loss.item()

    def loss(self, q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
        contr_w, align_w, unif_w = self.weights
        positive, negative = (q * k).sum(dim=1, keepdim=True), q @ queue  # N×1, N×K
        total = q.new_zeros(())
        if contr_w:
            logits = torch.cat([positive, negative], dim=1) / self.T
            total = total + contr_w * F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))
        if align_w:
            total = total + align_w * (q - k).square().sum(dim=1).mean()
        if unif_w:
            in_batch = torch.pdist(q).square()
            distances = torch.cat([(2 - 2 * negative).flatten(), in_batch])
            total = total + unif_w * distances.mul(-self.t).exp().mean().log()
        return total


def all_gather(x: Tensor) -> Tensor:
    if not dist.is_initialized():
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def shuffled(encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Returns the keys of this rank's images, encoded with shuffle-BN.

    Every rank encodes a random part of all ranks' images, and takes back the keys of its own images.
    """
    everyone = all_gather(images)
    order = torch.randperm(len(everyone), device=images.device)
    first = 0
    if dist.is_initialized():
        dist.broadcast(order, src=0)
        first = dist.get_rank() * len(images)
    here = slice(first, first + len(images))
    return all_gather(encode(everyone[order[here]]))[order.argsort()[here]]
