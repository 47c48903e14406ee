"""Encoders by name, and out of other projects' checkpoints (`files`)."""

from moco.encoders.channels import input_channels as input_channels
from moco.encoders.networks import (
    Projector as Projector,
    available as available,
    build_encoder as build_encoder,
    build_mlp as build_mlp,
    check_arch as check_arch,
    classifier_name as classifier_name,
    draw_weights as draw_weights,
    feature_dim as feature_dim,
    torchvision_arguments as torchvision_arguments,
    trunk as trunk,
)
from moco.encoders.own import SmallAlexNet as SmallAlexNet, SmallCNN as SmallCNN
