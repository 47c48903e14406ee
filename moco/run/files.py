"""JSON files that are whole or not there: their being there means that what they report has ended."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from moco.errors import InputError


def write_json(path: str | Path, content: Any) -> None:
    """Writes `content` so that `path` is, at every moment, the previous file or the new one.

    ValueError for a number that is not finite, which JSON lacks; InputError if it cannot be written.
    """
    path = Path(path)
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; make room or choose another place") from None
