"""MoCo's model: query encoder, key encoder, queue.

The key encoder is a moving average of the query encoder. The queue holds keys of past batches.
Source: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020, Algorithm 1.
One training step is

    model.update_key_encoder()               # k follows q: once per optimiser step, before the keys
    q, k = model(im_q, im_k)                 # unit-norm features
    loss = loss_function(q, k, model.queue).loss      # moco.losses
    loss.backward(); optimizer.step()
    model.enqueue(gather_rows(k))            # after backward: the loss was taken over the queue without these keys
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco import distributed
from moco.compiled import compiled
from moco.distributed.shuffle import RowShuffle
from moco.encoders.batchnorm import isolate_batchnorm
from moco.errors import InputError
from moco.randomness import Purpose, stream_key
from moco.timing import stage

KEYS = ("queue", "batch")


def choose_bn(bn: str | None, K: int, world_size: int, keys: str = "queue") -> str:
    """Returns the BatchNorm isolation: `bn`, or the default if it is None.

    The default is 'shuffle' on several ranks, 'split' on one, and 'local' without a queue. InputError for 'shuffle' or
    'split' with K 0.
    """
    if keys == "batch":
        return bn or "local"
    if K:
        return bn or ("shuffle" if world_size > 1 else "split")
    if bn in ("shuffle", "split"):
        raise InputError(
            f"--bn {bn} separates keys from queries; it has no effect with --moco-k 0, where both views are queries:"
            " pass --bn local, or --bn sync over several ranks"
        )
    return bn or "local"


class MoCo(nn.Module):
    """Holds the query encoder, key encoder and queue of one training.

    encoder: images [N, 3, H, W] -> features [N, dim]; its copy becomes the key encoder.
    K: queue length; with 0 there is no queue, and both views are queries.
    m: momentum of the key encoder.
    keys: 'batch' for MoCo v3, whose negatives are the batch's own keys; there is then no queue, for any K.
    predictor: [N, dim] -> [N, dim], applied to the queries alone.
    bn: how BatchNorm statistics are isolated (`moco.encoders.batchnorm`); None: `choose_bn` decides.
    seed: of the initial queue and of the shuffles.
    queue_per_view: keys of view 0 go to a second queue, `queue_of_view_0`, with the same pointer and labels.
    `state_dict` has the keys of facebookresearch/moco; `queue_state` has the rest.
    InputError for K < 0 or m outside [0, 1].
    """

    queue: Tensor
    queue_ptr: Tensor
    queue_labels: Tensor
    queue_of_view_0: Tensor | None
    filled: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        dim: int = 128,
        K: int = 65536,
        m: float = 0.999,
        bn: str | None = None,
        bn_group_size: int = 32,
        seed: int = 0,
        device: torch.device | str = "cpu",
        queue_per_view: bool = False,
        keys: str = "queue",
        predictor: nn.Module | None = None,
    ) -> None:
        super().__init__()
        K = 0 if keys == "batch" else K
        if K < 0:
            raise InputError(f"--moco-k must be at least 1, or 0 for no queue, not {K}")
        if not 0 <= m <= 1:
            raise InputError(f"--moco-m must be between 0 and 1, not {m:g}")
        self.K = K
        self.m = m
        self.seed = seed
        self.keys = keys
        self.both_query = keys == "queue" and K == 0
        self.bn = choose_bn(bn, K, distributed.world_size(), keys)
        device = torch.device(device)
        self.encoder_q = isolate_batchnorm(encoder, self.bn, bn_group_size)
        self.encoder_k = copy.deepcopy(self.encoder_q)
        self.encoder_k.requires_grad_(False)
        self.predictor = predictor and isolate_batchnorm(predictor, self.bn, bn_group_size)

        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("queue", F.normalize(torch.randn(dim, K, generator=generator), dim=0))
        second = F.normalize(torch.randn(dim, K, generator=generator), dim=0) if queue_per_view else None
        self.register_buffer("queue_of_view_0", second, persistent=False)
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
        self.register_buffer("queue_labels", torch.full((K,), -1), persistent=False)  # -1: no label, or never filled
        # entries that hold a key; the others still hold the random start
        self.register_buffer("filled", torch.zeros(1, dtype=torch.long), persistent=False)
        self.step = 0  # optimiser steps begun; part of the shuffle's key
        self._pairs: tuple[list[nn.Parameter], list[nn.Parameter]] | None = None  # key encoder, query encoder
        self.to(device)

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """Moves the key encoder's parameters towards the query encoder's (Eq 2).

        k ← m·k + (1 - m)·q, in a few fused kernels. BatchNorm buffers are not averaged.
        """
        if self._pairs is None:  # once: a walk through the modules takes longer than the start of the kernels
            self._pairs = list(self.encoder_k.parameters()), list(self.encoder_q.parameters())
        keys, queries = self._pairs
        torch._foreach_lerp_(keys, queries, 1 - self.m)  # type: ignore[arg-type]
        self.step += 1

    def forward(
        self,
        im_q: Tensor,
        im_k: Any,
        prepare_k: Callable[..., Tensor] | None = None,
        sizes: list[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns q, k of two views of the same images.

        Both are fp32 [N, dim] of unit norm. k has no gradient. Without im_k, k is empty.
        Without a queue both views go through the query encoder at once, and k has a gradient.
        im_k: images, or a tuple of per-sample tensors that `prepare_k` turns into images after the shuffle.
        So the ranks can exchange uint8 crops, a quarter of the bytes. The rank that encodes a crop augments it.
        sizes: samples per rank, if they differ.
        """
        if im_k is None:
            return self.queries(im_q), im_q.new_empty(0)
        if self.both_query:
            second = prepare_k(*im_k) if prepare_k else im_k
            with stage("query"):
                q, k = F.normalize(self.encoder_q(torch.cat([im_q, second])).float(), dim=1).chunk(2)
            return q, k
        q = self.queries(im_q)
        with stage("key"), torch.no_grad():
            parts = im_k if isinstance(im_k, tuple) else (im_k,)
            shuffle = self._shuffle_for(len(parts[0]), sizes)
            if shuffle:
                parts = tuple(shuffle.shuffle(part) for part in parts)
            k = self.encoder_k(prepare_k(*parts) if prepare_k else parts[0])
            k = F.normalize(k.float(), dim=1)
            if shuffle:
                k = shuffle.unshuffle(k)
        return q, k

    def queries(self, images: Tensor) -> Tensor:
        """Returns unit-norm fp32 queries [N, dim] of images [N, 3, H, W]."""
        with stage("query"):
            q = self.encoder_q(images)
            return F.normalize((q if self.predictor is None else self.predictor(q)).float(), dim=1)

    def _shuffle_for(self, n: int, sizes: list[int] | None) -> RowShuffle | None:
        if not self.training or self.bn not in ("shuffle", "split"):
            return None
        key = stream_key(self.seed, self.step, Purpose.SHUFFLE)
        if self.bn == "split":  # over this rank's groups only
            return RowShuffle(stream_key(key, 0, Purpose.SHUFFLE, view=distributed.rank()), [n])
        return RowShuffle(key, sizes or [n] * distributed.world_size())

    def queue_for(self, key_view: int) -> Tensor:
        """Returns the queue for queries whose keys are of view `key_view`."""
        return self.queue_of_view_0 if key_view == 0 and self.queue_of_view_0 is not None else self.queue

    @torch.no_grad()
    def enqueue(self, keys: Tensor, labels: Tensor | None = None, keys_of_view_0: Tensor | None = None) -> None:
        """Replaces the n oldest entries by the keys of all ranks.

        keys: [n, dim]. If n > K, the last K keys stay; n need not divide K.
        labels: int64 [n], or None.
        keys_of_view_0: keys of the same images, for the second queue.
        A batch with a key that is not finite changes nothing.
        Positions are computed on the device, so the host does not wait for it.
        """
        if not self.K:
            return
        n = len(keys)
        positions = (self.queue_ptr + torch.arange(n, device=keys.device)) % self.K
        kept = slice(max(0, n - self.K), n)  # index_copy_ needs each position at most once
        positions = positions[kept]
        labels = torch.full_like(positions, -1) if labels is None else labels[kept]
        # keys that are not finite would make every later loss not finite: such a batch does not change the queue
        good = keys.isfinite().all()
        pairs = [(self.queue, keys)]
        if keys_of_view_0 is not None and self.queue_of_view_0 is not None:
            good &= keys_of_view_0.isfinite().all()
            pairs.append((self.queue_of_view_0, keys_of_view_0))
        for queue, new in pairs:
            columns = new[kept].to(queue.dtype).t()
            queue.index_copy_(1, positions, torch.where(good, columns, queue[:, positions]))
        self.queue_labels.index_copy_(0, positions, torch.where(good, labels, self.queue_labels[positions]))
        self.queue_ptr.copy_((self.queue_ptr + n * good) % self.K)
        self.filled.copy_((self.filled + n * good).clamp_max(self.K))

    def queue_state(self) -> dict[str, Any]:
        """Returns the state for a resume that `state_dict` has no key for."""
        state = {"labels": self.queue_labels, "filled": self.filled, "step": self.step}
        return state if self.queue_of_view_0 is None else {**state, "queue_of_view_0": self.queue_of_view_0}

    def load_queue_state(self, state: dict[str, Any]) -> None:
        self.queue_labels.copy_(state["labels"])
        self.filled.copy_(state["filled"])
        self.step = int(state["step"])
        if self.queue_of_view_0 is not None:
            self.queue_of_view_0.copy_(state["queue_of_view_0"])


def compile_encoders(model: MoCo) -> None:
    """Compiles both encoders in place, under the same names.

    A part that cannot be compiled runs as it is. Only the encoders, because torch.compile fails on the whole step.
    """
    for part, encoder in (("query encoder", model.encoder_q), ("key encoder", model.encoder_k)):
        encoder._compiled_call_impl = compiled(encoder._call_impl, part)  # type: ignore[assignment, unused-ignore]
