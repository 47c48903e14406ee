"""An encoder in other projects' formats: `python -m moco.export`."""
