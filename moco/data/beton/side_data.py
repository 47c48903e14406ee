"""Stores data in a JSON file beside the .beton.

FFCV's format has no place for them: class names, sources, checksums and original sizes.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

_FORMAT = "moco-beton-1"


@dataclass
class SideData:
    """Holds the content of FILE.beton.json.

    Arrays and `names` have one entry per sample.
    """

    classes: list[str]
    names: list[str]
    original_size: np.ndarray  # uint32 [n, 2]: height and width before --max-resolution; crops are drawn in it
    crc32: np.ndarray  # uint32 [n], of each sample's stored bytes
    written_from: dict[str, Any] = field(default_factory=dict)  # source, split, options, versions
    left_out: dict[str, str] = field(default_factory=dict)  # file -> why it could not be read
    file_bytes: int = 0
    head_crc32: int = 0  # header, field descriptors and sample table
    tail_crc32: int = 0  # allocation table

    def dumps(self) -> str:
        body = asdict(self) | {"format": _FORMAT, "names": "\n".join(name.replace("\n", "?") for name in self.names)}
        for key, kind in (("original_size", "<u4"), ("crc32", "<u4")):  # lists of numbers would load slowly
            body[key] = base64.b64encode(getattr(self, key).astype(kind).tobytes()).decode()
        return json.dumps(body | {"checksum": _checksum(body)}, indent=1)

    @classmethod
    def loads(cls, text: str) -> SideData:
        """Reads the text of `dumps`. Raises ValueError for any other."""
        body = json.loads(text)
        if not isinstance(body, dict) or body.get("format") != _FORMAT:
            raise ValueError("this program did not write it")
        if body.pop("checksum", None) != _checksum(body):
            raise ValueError("its checksum is wrong")
        del body["format"]
        body["names"] = body["names"].split("\n")
        for key, shape in (("original_size", (-1, 2)), ("crc32", (-1,))):
            body[key] = np.frombuffer(base64.b64decode(body[key]), "<u4").reshape(shape)
        return cls(**body)


def _checksum(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())


def side_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")
