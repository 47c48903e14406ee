"""Handles a run's output folder: options, checkpoints, lock, log and provenance."""
