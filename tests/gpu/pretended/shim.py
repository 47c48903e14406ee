"""Loads the library of cuda.cpp before torch. A pytest plugin: `pytest -p tests.gpu.pretended.shim`.

torch asks for its CUDA hooks once, while it is imported, so the library must be there by then: a process that has torch
already cannot pretend.
"""

from __future__ import annotations

import ctypes
import sys

from tests.gpu.pretended.library import library

if "torch" in sys.modules:
    raise ImportError("tests.gpu.pretended.shim must be imported before torch")
driver = ctypes.CDLL(str(library()), mode=ctypes.RTLD_GLOBAL)
