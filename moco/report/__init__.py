"""Writes one page about many runs: `python -m moco.report`."""
