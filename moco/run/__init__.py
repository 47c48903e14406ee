"""The output folder of a run: options, checkpoints, lock, log, preemption and provenance."""
