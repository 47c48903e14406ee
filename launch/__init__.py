"""Starts the mains on a cluster, one or many at once.

Nothing in here changes what a run computes.
"""
