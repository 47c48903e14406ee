"""Describes the network that is exported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from moco.encoders import trunk
from moco.encoders.preprocessing import Preprocessing


@dataclass(frozen=True)
class Exported:
    """Holds the exported network, in evaluation mode.

    It is the trunk alone, unless `classes` names the classifier's classes.
    """

    arch: str
    encoder: nn.Module
    classes: list[str] | None
    preprocessing: Preprocessing
    about: dict[str, Any]  # the metadata
    arch_arg: list[str] = field(default_factory=list)  # of a network from outside

    @property
    def network(self) -> nn.Module:
        return self.encoder if self.classes else trunk(self.encoder)

    @property
    def state(self) -> dict[str, Tensor]:
        """Returns the network's tensors under their library's names."""
        return {key: value.contiguous() for key, value in self.network.state_dict().items()}

    @property
    def channels(self) -> int:
        """Returns the number of channels of its images."""
        return len(self.preprocessing.mean)

    @property
    def outputs(self) -> int:
        return len(self.classes or ())
