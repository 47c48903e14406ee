"""Implements the slow paths of MoCo's paper.

He et al. 2020, Algorithm 1. `main_moco.py --reference-step` trains with them. Each computes the same as its fast path,
with the same random choices, so the two runs differ by rounding alone. All similarities are computed at once, over a
clone of the queue (`moco.losses.logsumexp.whole_logsumexp`). The momentum update is a Python loop over parameters.
Shuffle-BN gathers the finished fp32 images of all ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moco.builder import MoCo
from moco.distributed import gather_rows, rank, world_size
from moco.randomness import Purpose, permutation, stream_key
from moco.timing import stage


class ReferenceMoCo(MoCo):
    """MoCo with Algorithm 1's momentum update, shuffle and queue."""

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        for k, q in zip(self.encoder_k.parameters(), self.encoder_q.parameters(), strict=True):
            k.data = k.data * self.m + q.data * (1 - self.m)
        self.step += 1

    def forward(
        self,
        im_q: Tensor,
        im_k: Any,
        prepare_k: Callable[..., Tensor] | None = None,
        sizes: list[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Computes MoCo's forward pass; every rank sends all its prepared images."""
        if self.both_query or im_k is None:
            return super().forward(im_q, im_k, prepare_k, sizes)
        q = self.queries(im_q)
        with stage("key"), torch.no_grad():
            parts = im_k if isinstance(im_k, tuple) else (im_k,)
            images = prepare_k(*parts) if prepare_k else parts[0]
            if not self.training or self.bn not in ("shuffle", "split"):
                return q, F.normalize(self.encoder_k(images).float(), dim=1)
            sizes = sizes or [len(images)] * world_size()
            key = stream_key(self.seed, self.step, Purpose.SHUFFLE)
            if self.bn == "split":
                key = stream_key(key, 0, Purpose.SHUFFLE, view=rank())
                sizes = [len(images)]
            me = rank() if len(sizes) > 1 else 0
            mine = slice(sum(sizes[:me]), sum(sizes[: me + 1]))
            order = torch.from_numpy(permutation(key, sum(sizes))).to(images.device)
            everyone = gather_rows(images, sizes) if len(sizes) > 1 else images
            here = torch.empty_like(images).copy_(everyone[order[mine]])  # in the memory format of `images`
            k = F.normalize(self.encoder_k(here).float(), dim=1)
            everyone = gather_rows(k, sizes) if len(sizes) > 1 else k
            return q, everyone[order.argsort()[mine]]

    @torch.no_grad()
    def enqueue(self, keys: Tensor, labels: Tensor | None = None, keys_of_view_0: Tensor | None = None) -> None:
        """Puts keys into the queue one by one; waits for each."""
        of_both = [keys] if keys_of_view_0 is None else [keys, keys_of_view_0]
        if not all(each.isfinite().all() for each in of_both):
            return
        for i, key in enumerate(keys):
            at = int(self.queue_ptr)
            self.queue[:, at] = key
            if keys_of_view_0 is not None:
                self.queue_for(0)[:, at] = keys_of_view_0[i]
            self.queue_labels[at] = -1 if labels is None else labels[i]
            self.queue_ptr[0] = (at + 1) % self.K
        self.filled.copy_((self.filled + len(keys)).clamp_max(self.K))
