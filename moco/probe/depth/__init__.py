"""Predicts depth from a frozen encoder's feature maps: python -m moco.probe.depth."""
