"""Pretrains an encoder: step, options and the state of a run."""
