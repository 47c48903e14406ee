"""Trains a linear classifier beside the encoder, on features without gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.distributed import all_reduce_sum, world_size
from moco.encoders import classifier_name, feature_dim
from moco.errors import InputError

LR = 0.1  # divided by the root of the number of features: logits then change equally fast for every width
MOMENTUM = 0.1
EPS = 1e-5


class Standardise(nn.Module):
    """Standardises features [N, D] with mean and standard deviation of recent steps.

    The samples of all ranks count. Early features are nearly parallel. Without this a linear classifier would use
    little more than their mean.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width, device=device))
        self.register_buffer("var", torch.ones(width, device=device))

    @torch.no_grad()
    def follow(self, features: Tensor, total: int) -> None:
        """Moves the statistics by MOMENTUM to those of this step.

        total: samples of all ranks.
        """
        sums = torch.stack([features.sum(0), features.square().sum(0)])
        of_all = all_reduce_sum(sums) if world_size() > 1 else sums
        mean, square = of_all / total
        self.mean.lerp_(mean, MOMENTUM)
        self.var.lerp_((square - mean.square()).clamp(min=0), MOMENTUM)

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / (self.var + EPS).sqrt()


class OnlineProbe:
    """Classifies the features that the projection head reads.

    They are detached, so the encoder trains as without it, bit for bit. encoder: the query encoder, on its device.
    classes: of the labels. The classifier standardises the features, starts at zero and draws no random numbers. Adam
    trains it with the mean gradient of all ranks, at a learning rate of .1 / √D for D features.
    """

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        device = next(encoder.parameters()).device
        width = feature_dim(encoder)
        linear = nn.utils.skip_init(nn.Linear, width, classes, device=device)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        self.standardise = Standardise(width, device)
        self.classifier = nn.Sequential(self.standardise, linear)
        self.optimizer = torch.optim.Adam(self.classifier.parameters(), LR / math.sqrt(width))
        self._features: Tensor | None = None
        encoder.get_submodule(classifier_name(encoder)).register_forward_pre_hook(self._keep)

    def _keep(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._features = inputs[0].detach()

    def take(self, n: int) -> Tensor:
        """Returns the features [n, D] of the last pass's first n images."""
        assert self._features is not None
        features = self._features[:n].float()
        self._features = None
        return features

    def step(self, features: Tensor, labels: Tensor, total: int) -> dict[str, Tensor]:
        """Trains the classifier for one step. All ranks must call it together.

        features [n, D], labels int64 [n], -1 for none: this rank's. total: samples of all ranks. Returns `online_loss`
        and `online_acc1` in percent, means over this rank's samples, on the device.
        """
        features = features.nan_to_num(0.0, 0.0, 0.0)  # those of a bad step must not stay in the classifier
        self.standardise.follow(features, total)
        logits = self.classifier(features)
        summed = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
        self.optimizer.zero_grad()
        (summed / total).backward()  # type: ignore[no-untyped-call, unused-ignore]
        if world_size() > 1:
            for parameter in self.classifier.parameters():
                assert parameter.grad is not None
                parameter.grad.copy_(all_reduce_sum(parameter.grad))
        self.optimizer.step()
        right = logits.argmax(dim=1) == labels
        return {"online_loss": summed.detach() / len(labels), "online_acc1": 100 * right.float().mean()}

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for the checkpoint."""
        return {"classifier": self.classifier.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads the result of `state_dict`.

        InputError if it is for other features or classes.
        """
        try:
            self.classifier.load_state_dict(state["classifier"])
        except RuntimeError:
            raise InputError(
                "the online classifier of the checkpoint is for other features or classes: leave out --online-probe"
            ) from None
        self.optimizer.load_state_dict(state["optimizer"])
