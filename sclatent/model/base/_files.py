"""Files that are never half written."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(file: Path, content: bytes) -> None:
    """Write a file so that at every moment either the old content or the new one stands there, whole."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with open(temporary, "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, file)
