"""Pretraining: the step, its options and the state of a run."""
