"""Builds encoders by name, and reads them from other projects' checkpoints (`files`)."""

from moco.encoders.channels import input_channels as input_channels
from moco.encoders.heads import Projector as Projector, build_mlp as build_mlp
from moco.encoders.networks import (
    available as available,
    build_encoder as build_encoder,
    check_arch as check_arch,
    check_image_size as check_image_size,
    classifier_name as classifier_name,
    draw_weights as draw_weights,
    feature_dim as feature_dim,
    freeze_patches as freeze_patches,
    torchvision_arguments as torchvision_arguments,
    trunk as trunk,
)
from moco.encoders.own import SmallAlexNet as SmallAlexNet, SmallCNN as SmallCNN
