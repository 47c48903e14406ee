"""Reads FFCV's file format, and writes it with `python -m moco.data.beton`."""
