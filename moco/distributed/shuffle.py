"""Shuffles the keys' images over the ranks as MoCo does, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from moco.distributed.collectives import exchange_rows
from moco.distributed.session import copy_without_waiting, rank
from moco.randomness import permutation


class RowShuffle:
    """Permutes the rows of the global batch over the ranks (MoCo's shuffle-BN).

    MoCo gathers every image on every rank and keeps a part. Here an all-to-all sends each row once, directly to its new
    rank. The permutation is a function of `key`, so no broadcast is needed. With a single size it permutes the rows of
    this rank alone.
    """

    def __init__(self, key: int, sizes: list[int]) -> None:
        me = rank() if len(sizes) > 1 else 0
        world = len(sizes)
        starts = [sum(sizes[:r]) for r in range(world + 1)]
        order = torch.from_numpy(permutation(key, starts[-1]))  # new position p holds old row order[p]
        owner = torch.bucketize(order, torch.tensor(starts[1:]), right=True)  # rank that holds old row order[p]
        mine = order[starts[me] : starts[me + 1]]  # old rows that come here, in their new order
        # sent to rank r: this rank's old rows among r's new ones, in r's order
        sent = [order[starts[r] : starts[r + 1]] for r in range(world)]
        sent = [rows[owner[starts[r] : starts[r + 1]] == me] - starts[me] for r, rows in enumerate(sent)]
        self.send_rows = torch.cat(sent)
        self.send_sizes = [len(rows) for rows in sent]
        # rows arrive grouped by sender, within a group in their new order: a stable sort by sender identifies them
        sender = torch.bucketize(mine, torch.tensor(starts[1:]), right=True)
        self.arrival = torch.argsort(sender, stable=True)
        self._there: tuple[Tensor, Tensor] | None = None  # send_rows and arrival on the device of the rows
        self.receive_sizes = torch.bincount(sender, minlength=world).tolist()

    def _indices(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._there is None:
            self._there = copy_without_waiting(self.send_rows, device), copy_without_waiting(self.arrival, device)
        return self._there

    def shuffle(self, x: Tensor) -> Tensor:
        """Returns this rank's part of the permuted global batch.

        [sizes[rank], ...] -> [sizes[rank], ...].
        """
        send_rows, arrival = self._indices(x.device)
        received = exchange_rows(x[send_rows], self.send_sizes, self.receive_sizes)
        out = torch.empty_like(received)
        out[arrival] = received
        return out

    def unshuffle(self, x: Tensor) -> Tensor:
        """Inverts `shuffle`: each row returns to its old rank and position."""
        send_rows, arrival = self._indices(x.device)
        returned = exchange_rows(x[arrival], self.receive_sizes, self.send_sizes)
        out = torch.empty_like(returned)
        out[send_rows] = returned
        return out
