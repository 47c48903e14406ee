"""Features of the trunk, of the projection head, or of a layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.encoders import SmallAlexNet, classifier_name, input_channels, trunk
from moco.encoders.files import EncoderFile
from moco.errors import InputError, did_you_mean
from moco.evaluate.features import eval_mode

TRUNK = "trunk"
OUTPUT = "output"
# the paper's names of SmallAlexNet's layers, which are numbered here
_ALEXNET = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")


class Layers(nn.Module):
    """Computes the features of several layers in one forward pass.

    [N, C, S, S] -> [N, sum of `widths`], side by side. names: "trunk", "output" (of unit length, as in the loss), or a
    layer's name in the encoder, such as layer3 or blocks.5 (for SmallAlexNet also conv1 ... fc7). A layer's output is
    flattened. InputError for an unknown name.
    """

    def __init__(self, encoder: nn.Module, names: Sequence[str], image_size: int) -> None:
        super().__init__()
        self.names = tuple(names)
        self.trunk = trunk(encoder)
        self.head = encoder.get_submodule(classifier_name(encoder)) if OUTPUT in names else None
        self._kept: dict[str, Tensor] = {}
        for name in names:
            if name not in (TRUNK, OUTPUT):
                find_layer(self.trunk, name).register_forward_hook(self._keeper(name))
        blank = next(encoder.parameters()).new_zeros((1, input_channels(encoder), image_size, image_size))
        with torch.no_grad(), eval_mode(self):
            self.widths = tuple(part.shape[1] for part in self._parts(blank))

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(self._parts(images), dim=1)

    def _parts(self, images: Tensor) -> list[Tensor]:
        features = self.trunk(images)
        parts = {TRUNK: features, **self._kept}
        self._kept.clear()
        if self.head is not None:
            parts[OUTPUT] = F.normalize(self.head(features), dim=1)
        return [parts[name] for name in self.names]

    def _keeper(self, name: str):  # type: ignore[no-untyped-def]
        def keep(_: nn.Module, __: object, out: Tensor) -> None:
            self._kept[name] = out.flatten(1).clone()  # the next layer may work in place

        return keep


class FeatureMaps(nn.Module):
    """Computes the output of one layer, not flattened.

    [N, C, S, S] -> [N, channels, side, side]. InputError for an unknown name, and for a layer whose output is no
    square map.
    """

    def __init__(self, encoder: nn.Module, name: str, image_size: int) -> None:
        super().__init__()
        self.trunk = trunk(encoder)
        self._kept: list[Tensor] = []
        if name in (TRUNK, OUTPUT):
            raise InputError(f"--features-from {name} is one vector for an image: name a layer, as conv5 or layer3")
        find_layer(self.trunk, name).register_forward_hook(self._keep)
        blank = next(encoder.parameters()).new_zeros((1, input_channels(encoder), image_size, image_size))
        with torch.no_grad(), eval_mode(self):
            shape = self(blank).shape
        if len(shape) != 4 or shape[2] != shape[3]:
            raise InputError(f"--features-from {name} gives {list(shape[1:])} for an image: name a convolutional layer")
        self.channels = shape[1]
        self.side = shape[2]

    def _keep(self, _: nn.Module, __: object, out: Tensor) -> None:
        self._kept.append(out.clone())  # the next layer may work in place

    def forward(self, images: Tensor) -> Tensor:
        self.trunk(images)
        maps = self._kept.pop()
        self._kept.clear()
        return maps


def find_layer(network: nn.Module, name: str) -> nn.Module:
    """Returns the module called `name`.

    The paper's names of SmallAlexNet's layers are accepted too. InputError, with near names, if there is no
    such module.
    """
    modules = dict(network.named_modules())
    place = f"blocks.{_ALEXNET.index(name)}" if isinstance(network, SmallAlexNet) and name in _ALEXNET else name
    if place and place in modules and not isinstance(modules[place], nn.Identity):
        return modules[place]
    hint = did_you_mean(name, [TRUNK, OUTPUT, *modules])
    hint = hint or f"; take {TRUNK}, {OUTPUT} or, for instance, {[*modules][-1]}"
    raise InputError(f"--features-from {name}: the encoder has no such layer{hint}")


def load_projection(encoder: nn.Module, file: EncoderFile) -> bool:
    """Gives `encoder` the projection head of `file`.

    Returns False if the file has none. The head is a linear layer or an MLP, with or without BatchNorm. Classifiers
    and heads of other projects do not count, because no loss of this project trained them. InputError for any other
    kind of head.
    """
    prefix = classifier_name(encoder) + "."
    head = {key.removeprefix(prefix): value for key, value in file.state.items() if key.startswith(prefix)}
    of_the_loss = file.layout.lower().startswith("moco") or file.options.get("features_from") == OUTPUT
    if not of_the_loss or not any(key.endswith("weight") for key in head):
        return False
    new = _head_of(head)
    try:
        new.load_state_dict(head)
    except RuntimeError as error:
        raise InputError(
            f"{file.path} has a projection head that is neither linear nor an MLP; measure --features-from trunk"
        ) from error
    owner, _, leaf = prefix[:-1].rpartition(".")
    setattr(encoder.get_submodule(owner), leaf, new)
    return True


def _head_of(state: dict[str, Tensor]) -> nn.Module:
    """Builds a layer or a Sequential with the shapes in `state`.

    A number of the Sequential without a tensor is a ReLU.
    """
    if "weight" in state:
        return _layer_of(state, "")
    numbers = [int(number) for number in (key.partition(".")[0] for key in state) if number.isdigit()]
    return nn.Sequential(*(_layer_of(state, f"{number}.") for number in range(max(numbers, default=-1) + 1)))


def _layer_of(state: dict[str, Tensor], prefix: str) -> nn.Module:
    weight = state.get(f"{prefix}weight")
    if (mean := state.get(f"{prefix}running_mean")) is not None:
        return nn.BatchNorm1d(len(mean), affine=weight is not None)
    if weight is None:
        return nn.ReLU()
    return nn.Linear(weight.shape[-1], len(weight), bias=f"{prefix}bias" in state)
