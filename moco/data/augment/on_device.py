"""Augments a whole batch on an accelerator, as one graph.

Every operation runs on every sample, and the results are selected. Choosing samples first would mean waiting for the
device. All of it is one graph for torch.compile. It reads the bytes twice, because contrast needs an image's mean, and
reads the image once more in each of the blur's two passes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moco.data.augment import batched as pixels
from moco.data.augment.batched import Planes
from moco.data.augment.parameters import BRIGHTNESS, CONTRAST, HUE, SATURATION, Parameters, draw_with
from moco.data.augment.recipes import View


def everywhere(
    crops: Tensor,
    index: Tensor,
    keys: Tensor,
    steps: Tensor,
    scale: Tensor,
    shift: Tensor,
    view: View,
    dtype: torch.dtype,
) -> Tensor:
    """Augments crops, and reads no value back from the device.

    crops: uint8 [n, S, S, C]. Returns normalised `dtype` [n, C, S, S] in channels_last. There is one graph for a
    view, because nothing in it depends on the epoch or on the number of samples. keys: of the view's streams.
    steps: see `moco.randomness.uniform`.
    """
    x = change(crops, draw_with(view, keys.unbind(), index, steps), view)
    x = x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def change(crops: Tensor, p: Parameters, view: View) -> Tensor:
    """Augments crops, without normalisation.

    crops: uint8 [n, S, S, C]. Returns float32 [n, C, S, S] in [0, 255].
    """
    if p.flip is not None:
        crops = torch.where(p.flip.view(-1, 1, 1, 1), crops.flip(2), crops)
    planes = [plane.to(torch.float32, memory_format=torch.contiguous_format) for plane in crops.unbind(3)]
    if p.degrees is not None:
        planes = list(pixels.rotate(torch.stack(planes, 1), _mirrored(p.degrees, p.flip)).unbind(1))
    if view.grayscale_first:
        planes = _grey(planes, p.grayscale)
    if p.order is not None and p.factors is not None:
        planes = _jitter(planes, p.order, p.factors, view.rgb and len(planes) == 3)
    if not view.grayscale_first:
        planes = _grey(planes, p.grayscale)
    x = torch.stack(planes, 1)
    if p.sigma is not None:
        x = pixels.blur(x, p.sigma, pixels.blur_radius(view.sigma[1], x.shape[2]))
    if p.solarize is not None:
        x = torch.where(p.solarize.view(-1, 1, 1, 1), pixels.solarize(x), x)
    return x


def _grey(planes: Planes, chosen: Tensor | None) -> Planes:
    if chosen is None:
        return planes
    grey = pixels.luma(planes)
    return [torch.where(pixels.per_sample(chosen), grey, plane) for plane in planes]


def _jitter(planes: Planes, order: Tensor, factors: Tensor, rgb: bool) -> Planes:
    """Applies the jitter's operations in the order of each sample.

    Only contrast needs the whole image, for its mean. So there are up to three operations, contrast, and up to three
    more, and the batch is read twice for any orders. In images that are not RGB, each channel has its own mean.
    """
    orders = order.unbind(1)
    place = sum(((orders[k] == CONTRAST) * k for k in range(1, 4)), torch.zeros_like(orders[0]))
    for k in range(3):
        planes = _one_operation(planes, torch.where(k < place, orders[k], CONTRAST), factors, rgb)
    greys = [pixels.luma(planes)] if rgb else planes
    means = [grey.mean((1, 2), keepdim=True) for grey in greys]
    means = means * (len(planes) // len(means))
    planes = [pixels.blend(plane, mean, factors[:, CONTRAST]) for plane, mean in zip(planes, means, strict=True)]
    for k in range(1, 4):
        planes = _one_operation(planes, torch.where(k > place, orders[k], CONTRAST), factors, rgb)
    return planes


def _one_operation(planes: Planes, which: Tensor, factors: Tensor, rgb: bool) -> Planes:
    """Applies brightness, saturation or hue, as `which` [n] says.

    CONTRAST changes nothing. Without RGB, only brightness changes the planes.
    """
    which = pixels.per_sample(which)
    bright = [pixels.blend(plane, 0.0, factors[:, BRIGHTNESS]) for plane in planes]
    if not rgb:
        return [torch.where(which == BRIGHTNESS, new, plane) for new, plane in zip(bright, planes, strict=True)]
    grey = pixels.luma(planes)
    changed = []
    for plane, brighter, shifted in zip(planes, bright, pixels.shift_hue(planes, factors[:, HUE]), strict=True):
        saturated = pixels.blend(plane, grey, factors[:, SATURATION])
        chosen = torch.where(which == HUE, shifted, plane)
        chosen = torch.where(which == SATURATION, saturated, chosen)
        changed.append(torch.where(which == BRIGHTNESS, brighter, chosen))
    return changed


def _mirrored(degrees: Tensor, flip: Tensor | None) -> Tensor:
    """Returns the angles, negated for flipped samples.

    The flip runs first, on bytes, although the view puts it last. It commutes with all operations except the rotation,
    whose direction it reverses.
    """
    return degrees if flip is None else torch.where(flip, -degrees, degrees)
