"""Writes an encoder in other projects' formats: `python -m moco.export`."""
