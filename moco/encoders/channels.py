"""Adapts first convolutions to any number of channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def input_channels(encoder: nn.Module) -> int:
    """Returns the number of channels that the encoder was built for."""
    return getattr(encoder, "_moco_channels", 3)


def give_channels(encoder: nn.Module, channels: int) -> None:
    """Replaces a first convolution of three channels by one of `channels`.

    A network without such a convolution does not change. The new weights are drawn from a normal distribution.
    Its standard deviation is the old one times sqrt(3 / channels), so that the outputs keep their size.
    """
    convolutions = [(name, layer) for name, layer in encoder.named_modules() if isinstance(layer, nn.Conv2d)]
    if not convolutions or convolutions[0][1].in_channels != 3:
        return  # timm's networks, and factories from outside, already have the channels
    name, module = convolutions[0]
    new = nn.Conv2d(
        channels,
        module.out_channels,
        module.kernel_size,  # type: ignore[arg-type]
        module.stride,  # type: ignore[arg-type]
        module.padding,  # type: ignore[arg-type]
        module.dilation,  # type: ignore[arg-type]
        bias=module.bias is not None,
        padding_mode=module.padding_mode,
    )
    with torch.no_grad():
        new.weight.normal_(0, module.weight.std().item() * math.sqrt(3 / channels))
        if module.bias is not None and new.bias is not None:
            new.bias.copy_(module.bias)
    owner, _, leaf = name.rpartition(".")
    setattr(encoder.get_submodule(owner), leaf, new)


def weights_for(wanted: dict[str, Tensor], offered: dict[str, Tensor], channels: int) -> tuple[dict[str, Tensor], str]:
    """Adapts an RGB network's first convolution in `offered` to `channels`.

    Returns the weights and a note.
    The rule is timm's for `in_chans`: for one channel the sum over RGB, else RGB repeated, times 3 / channels.
    Weights that do not have three channels stay as they are.
    """
    odd = [key for key, value in wanted.items() if key in offered and offered[key].shape != value.shape]
    if channels == 3 or len(odd) != 1:
        return offered, ""
    key = odd[0]
    there = offered[odd[0]]
    here = wanted[odd[0]]
    if there.dim() != 4 or there.shape[1] != 3 or here.shape[1] != channels or there[:, 0].shape != here[:, 0].shape:
        return offered, ""
    from timm.models import adapt_input_conv  # here, because timm takes half a second to import

    rule = "the sum over RGB" if channels == 1 else f"RGB repeated, times 3/{channels}"
    return offered | {key: adapt_input_conv(channels, there)}, f"{key} for {channels} channels: {rule}"
