"""Trains linear probes and other classifiers for main_lincls.py."""
