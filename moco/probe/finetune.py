"""Trains an encoder together with its classifier."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from moco import distributed
from moco.encoders import trunk
from moco.encoders.batchnorm import isolate_batchnorm
from moco.probe.model import Features, Model, Rows, Setup
from moco.probe.protocols import Linear
from moco.probe.training import Stream
from moco.run.arithmetic import check_deterministic


class Finetune(Linear):
    """Trains the encoder too, with a learning rate of its own."""

    name = "finetune"
    drop_last = True  # a last batch of one image would have no BatchNorm statistics

    def settings(self) -> list[tuple[float, float]]:
        return [(self.options.head_lr, self.options.weight_decay)]

    def in_words(self) -> str:
        o = self.options
        return f"learning rates {self._scaled(o.trunk_lr)} (trunk) and {self._scaled(o.head_lr)} (classifier)"

    def prepare(self, model: Model) -> Model:
        """Returns the model to train.

        Its BatchNorm uses the batch of all ranks, as in one process.
        """
        encoder = model.encoder.requires_grad_(True)
        device = next(encoder.parameters()).device
        if distributed.world_size() > 1:
            encoder = isolate_batchnorm(encoder, "sync")
        check_deterministic(encoder, self.options.arch or "this network", self.options.deterministic, device)
        return dataclasses.replace(model, encoder=encoder, network=trunk(encoder))

    def features(self, setup: Setup) -> Features:
        """Returns no features: those before the training are not needed."""
        return Features(None, None)

    def stream(self, setup: Setup) -> Stream:
        return self._crops(setup, None)

    def _trained(self, model: Model) -> nn.Module | None:
        return model.network

    def _frozen(self, model: Model) -> dict[str, Tensor]:
        return {}

    def _features(self, setup: Setup, validation: Rows | None) -> Rows:
        return setup.features_of(setup.val)
