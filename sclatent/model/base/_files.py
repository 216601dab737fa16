"""Files that are never half written, and whose damage is noticed."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path


def write_atomically(file: Path, content: bytes, before: Path | None = None) -> None:
    """Write a file so that at every moment either the old content or the new one stands there, whole.

    With ``before`` the old content is kept in a file of that name, which for a moment is the only one there.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}")  # other containers have this pid
    try:
        with open(temporary, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        if before is not None and file.exists():
            os.replace(file, before)
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere folders cannot be opened
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def with_checksum(content: bytes) -> bytes:
    """Content of a file whose first line is the checksum of the rest."""
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def read_checked(file: Path) -> bytes | None:
    """Read what was written :func:`with_checksum`; None if it is damaged or not there."""
    try:
        digest, _, content = file.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    return content if digest == hashlib.sha256(content).hexdigest().encode() else None
