"""Sentence encoders trained on plain text: `python -m moco.sentences.train` and `.evaluate`."""
