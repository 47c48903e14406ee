"""FFCV's file format: reading it, and writing it with `python -m moco.data.beton`."""
