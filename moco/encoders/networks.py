"""Builds encoders by name; their classifier is the projection head.

As in MoCo, `num_classes` is the dimension. `build_encoder` returns the plain torchvision or timm module, so state keys
are those of the library (`conv1.weight`, ..., `fc.weight`). `own` has the networks that those libraries lack.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from moco import plugins
from moco.encoders.channels import give_channels, input_channels
from moco.encoders.heads import Projector, build_mlp
from moco.encoders.own import OWN
from moco.errors import InputError

_TIMM = "timm:"
# Their last layer is a convolution followed by a ReLU: they have no linear classifier to replace or to remove.
_WITHOUT_LINEAR = ("squeezenet1_0", "squeezenet1_1")
MOCO_V3_VITS = ("vit_small", "vit_base", "vit_conv_small", "vit_conv_base")  # moco/encoders/vit.py


def available() -> list[str]:
    """Returns the names that `build_encoder` takes, besides timm:NAME.

    timm:NAME works for every name that timm knows.
    """
    of_torchvision = [name for name in models.list_models(module=models) if name not in _WITHOUT_LINEAR]
    return sorted([*OWN, *MOCO_V3_VITS, *of_torchvision])


def check_arch(arch: str | None, arguments: Sequence[str]) -> None:
    """Raises InputError for a missing module:factory, or arguments of a built-in network."""
    plugins.check_unused("--arch", arch, arguments)
    if arch is not None and plugins.is_outside(arch):
        plugins.find("--arch", arch, arguments, 1)


def build_encoder(
    arch: str,
    num_classes: int,
    mlp: bool = False,
    image_size: int | None = None,
    arguments: Sequence[str] = (),
    projector: Projector | None = None,
    channels: int = 3,
) -> nn.Module:
    """Builds the untrained network `arch`: [N, channels, S, S] -> [N, num_classes].

    arch module:factory is called as `factory(num_classes, **arguments)`; its last linear layer is the classifier.
    arguments: the --arch-arg words.

    `mlp` makes its classifier Linear(d, d)-ReLU-Linear(d, num_classes), without BatchNorm (MoCo v2). `projector` is a
    head of another shape instead. Networks that are built for one size (ViT, MaxViT) get `image_size` S, and the
    network is tried on one blank image of it. InputError: unknown arch (with near names), no linear classifier, an
    image size that the network does not take.
    """
    if num_classes < 1:
        raise InputError(f"the encoder's output needs at least 1 dimension, not {num_classes}")
    try:
        encoder = _build_plain(arch, num_classes, image_size, arguments, channels)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"--arch {arch} cannot be built for images of {image_size} px: {_first_line(error)}"
        ) from error
    if channels != 3:
        give_channels(encoder, channels)
    encoder._moco_channels = channels  # type: ignore[assignment]
    name = _find_classifier(encoder, arch)
    encoder._moco_classifier = name  # type: ignore[assignment]
    last = encoder.get_submodule(name)
    assert isinstance(last, nn.Linear)
    if not torch.count_nonzero(last.weight):
        # torchvision's ViT starts its classifier at zero, and a projection to the zero vector has no direction.
        last.reset_parameters()
    if projector is not None and (projector.layers > 1 or projector.bn):
        _replace(encoder, name, build_mlp(last.in_features, num_classes, projector))
    elif mlp:
        _replace(encoder, name, nn.Sequential(nn.Linear(last.in_features, last.in_features), nn.ReLU(), last))
    if image_size is not None:
        _try_on_blank(encoder, arch, image_size, num_classes)
    return encoder


def freeze_patches(encoder: nn.Module, arch: str) -> None:
    """Freezes a ViT's patch projection at its random start.

    MoCo v3 does this against unstable training. InputError if the encoder has no such projection.
    """
    projection = getattr(getattr(encoder, "patch_embed", None), "proj", None)
    if not isinstance(projection, nn.Conv2d):
        raise InputError(f"--stop-grad-conv1 is for ViTs with a projection of patches, which --arch {arch} lacks")
    projection.requires_grad_(False)


def classifier_name(encoder: nn.Module) -> str:
    """Returns the name of the last layer or head, such as 'heads.head'."""
    name = getattr(encoder, "_moco_classifier", None)
    return name if name is not None else _find_classifier(encoder, type(encoder).__name__)


def feature_dim(encoder: nn.Module) -> int:
    """Returns the dimension of the trunk's features, which the classifier reads."""
    layers = encoder.get_submodule(classifier_name(encoder)).modules()
    return next(layer.in_features for layer in layers if isinstance(layer, nn.Linear))


def trunk(encoder: nn.Module) -> nn.Module:
    """Returns the encoder without its classifier.

    It computes [N, C, S, S] -> [N, feature_dim]. It shares all parameters and buffers. Only the containers on the path
    to the classifier are copied; the encoder itself does not change.
    """
    view = _shallow_copy(encoder)
    owner = view
    *path, leaf = classifier_name(encoder).split(".")
    for part in path:
        owner._modules[part] = _shallow_copy(owner.get_submodule(part))
        owner = owner.get_submodule(part)
    owner._modules[leaf] = nn.Identity()
    return view


def _shallow_copy(module: nn.Module) -> nn.Module:
    """Copies a module, which keeps the same parameters, buffers and children."""
    view = copy.copy(module)
    view._modules = dict(module._modules)
    return view


@torch.no_grad()
def draw_weights(encoder: nn.Module, std: float) -> None:
    """Draws new weights: N(0, std) in convolutions and linear layers.

    Biases become 0, BatchNorm the identity. Wang & Isola initialise SmallAlexNet in this way, with std 0.02.
    The numbers come from torch's default generator.
    """
    for layer in encoder.modules():
        if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
            nn.init.normal_(layer.weight, 0.0, std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.reset_parameters()


def _build_plain(
    arch: str, num_classes: int, image_size: int | None, arguments: Sequence[str], channels: int
) -> nn.Module:
    if plugins.is_outside(arch):
        encoder = plugins.find("--arch", arch, arguments, num_classes)()
        if not isinstance(encoder, nn.Module):
            raise InputError(f"--arch {arch} gives a {type(encoder).__name__}, not a torch.nn.Module")
        return encoder
    if arch.startswith(_TIMM):
        return _build_timm(arch.removeprefix(_TIMM), num_classes, image_size, channels)
    if arch in OWN:
        return OWN[arch](num_classes)
    if arch in MOCO_V3_VITS:
        from moco.encoders.vit import VITS  # here, because timm takes half a second

        return VITS[arch](num_classes, image_size or 224)
    if arch in _WITHOUT_LINEAR:
        raise InputError(
            f"--arch {arch} has no linear classifier, so it cannot carry a projection head: choose another one"
        )
    if arch not in available():
        raise _unknown(arch)
    return models.get_model(arch, weights=None, num_classes=num_classes, **torchvision_arguments(arch, image_size))


def torchvision_arguments(arch: str, image_size: int | None) -> dict[str, Any]:
    """Returns `torchvision.models.get_model`'s arguments besides the name."""
    if arch in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}  # with auxiliary classifiers the output is not one tensor
    if image_size is not None and arch.startswith("vit_"):
        return {"image_size": image_size}
    if image_size is not None and arch.startswith("maxvit_"):
        return {"input_size": (image_size, image_size)}
    return {}


def _build_timm(name: str, num_classes: int, image_size: int | None, channels: int) -> nn.Module:
    import timm  # here, because it takes half a second to import

    if not timm.is_model(name):
        raise _unknown(_TIMM + name)
    cfg = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    extra: dict[str, Any] = {"img_size": image_size} if image_size is not None and cfg and cfg.fixed_input_size else {}
    if channels != 3:
        extra["in_chans"] = channels
    return timm.create_model(name, pretrained=False, num_classes=num_classes, **extra)


def _unknown(arch: str) -> InputError:
    """Returns the error for an unknown name, with the nearest known names."""
    names = available()
    try:
        import timm

        names += [_TIMM + name for name in timm.list_models()]
    except ImportError:
        pass
    bare = {name.removeprefix(_TIMM): name for name in reversed(names)}  # torchvision's is taken if both have the name
    near = [bare[name] for name in difflib.get_close_matches(arch.removeprefix(_TIMM).lower(), bare, n=4, cutoff=0.5)]
    hint = (
        f"did you mean {', '.join(near)}?"
        if near
        else f"take a torchvision classification name, timm:NAME or one of {', '.join(OWN)}"
    )
    return InputError(f"unknown --arch {arch!r}; {hint}")


def _find_classifier(encoder: nn.Module, arch: str) -> str:
    """Finds the classifier's name: timm's `default_cfg`, else the last linear layer."""
    name = getattr(encoder, "default_cfg", {}).get("classifier") if hasattr(encoder, "default_cfg") else None
    if name is None:
        linear = [dotted for dotted, module in encoder.named_modules() if isinstance(module, nn.Linear)]
        name = linear[-1] if linear else None
    # a tuple of names is two classifiers (distilled ViTs); some of timm's are convolutions, read before the pooling
    if not isinstance(name, str) or not isinstance(encoder.get_submodule(name), nn.Linear | nn.Sequential):
        raise InputError(
            f"--arch {arch} has no single linear classifier, so it cannot carry a projection head: choose another one"
        )
    return name


def _replace(encoder: nn.Module, dotted: str, module: nn.Module) -> None:
    owner, _, leaf = dotted.rpartition(".")
    setattr(encoder.get_submodule(owner), leaf, module)


def check_image_size(encoder: nn.Module, arch: str, image_size: int, flag: str = "--image-size") -> Any:
    """Returns the output for one blank image; BatchNorm's statistics do not change.

    InputError if the encoder does not take the image.
    """
    channels = input_channels(encoder)
    encoder.eval()
    try:
        with torch.no_grad():
            out = encoder(torch.zeros(1, channels, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"--arch {arch} does not take images of {image_size} px"
            f"{'' if channels == 3 else f' and {channels} channels'}: change {flag} ({_first_line(error)})"
        ) from error
    encoder.train()
    return out


def _try_on_blank(encoder: nn.Module, arch: str, image_size: int, num_classes: int) -> None:
    out = check_image_size(encoder, arch, image_size)
    if not isinstance(out, Tensor) or out.shape != (1, num_classes):
        raise InputError(
            f"--arch {arch} does not give one vector per image, so it cannot be an encoder: choose another one"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
