"""The checks in pretended/ need a process whose torch believes in GPUs; test_pretended.py starts it."""

import sys

collect_ignore = [] if "tests.gpu.pretended.shim" in sys.modules else ["pretended"]
