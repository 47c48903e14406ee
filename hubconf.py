"""Entry points of torch.hub:

encoder = torch.hub.load("path/of/clone", "encoder", source="local", checkpoint="runs/x/checkpoint_0199.pth.tar")
"""

dependencies = ["torch", "torchvision", "timm", "numpy", "PIL", "sklearn", "yaml"]

from torch import nn  # noqa: E402

from moco.encoders.files import read_trunk as _read_trunk  # noqa: E402  # the underscore hides it from torch.hub.list


def encoder(checkpoint: str, arch: str | None = None, image_size: int | None = None) -> nn.Module:
    """Returns the pretrained trunk in `checkpoint`, in evaluation mode.

    It maps images [N, C, S, S] to features [N, d].
    checkpoint: a file or an exported folder of any layout in moco/encoders/files.py.
    arch: the network's name, if the checkpoint does not name it.
    image_size: S, for networks built for one size; default: the run's, else 224.
    `encoder.preprocessing(image)` makes fp32 [C, S, S] of a Pillow image as the run's evaluation did.
    """
    return _read_trunk(checkpoint, arch, image_size)
