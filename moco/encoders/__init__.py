"""Encoders by name, and out of other projects' checkpoints (`files`)."""

from moco.encoders.networks import (
    SmallAlexNet as SmallAlexNet,
    SmallCNN as SmallCNN,
    available as available,
    build_encoder as build_encoder,
    classifier_name as classifier_name,
    feature_dim as feature_dim,
    torchvision_arguments as torchvision_arguments,
    trunk as trunk,
)
