"""Measures of an encoder's features: `python -m moco.evaluate`."""
