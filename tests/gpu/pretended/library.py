"""The compiled cuda.cpp. Imports no torch."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("cuda.cpp")
CACHE = Path(__file__).resolve().parents[3] / "build" / "pretended_cuda"


def compiler() -> str | None:
    """The C++ compiler: $CXX, or c++; None if there is none."""
    return shutil.which(os.environ.get("CXX") or "c++")


def library() -> Path:
    """The compiled library for this source and this torch; compiled if it is not there. Some twenty seconds."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    torch = Path(spec.origin).parent
    version = (torch / "version.py").read_bytes()
    path = CACHE / hashlib.sha256(SOURCE.read_bytes() + version).hexdigest()[:16] / "pretended_cuda.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    headers = [f"-I{torch}/include", f"-I{torch}/include/torch/csrc/api/include"]
    libraries = [f"-L{torch}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch}/lib"]
    how = [compiler() or "c++", "-std=c++20", "-O1", "-fPIC", "-shared"]
    subprocess.run([*how, "-o", str(unfinished), str(SOURCE), *headers, *libraries], check=True)
    unfinished.replace(path)  # of two that compile at once, either's is good
    return path
