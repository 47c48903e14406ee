"""What an encoder's features are worth without training: `python -m moco.evaluate`."""
