"""Ways to start the mains on a cluster, and many of them at once. Nothing in here changes what a run computes."""
