"""Linear probes and their relatives: what main_lincls.py is made of."""
