"""Files that are never half written, whose damage is noticed, and folders with one writer at a time."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]  # a module elsewhere, which mypy takes it for

TRIES = 1_000  # some network file systems give a file another identity whenever they are asked


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


@contextmanager
def only_writer(lock: Path) -> Iterator[None]:
    """Wait until no other thread, process or container holds a lock file, and hold it.

    The lock is one of the operating system on the open file: it ends with its holder, however that ends, so a file
    that is left behind locks nobody out. Where the operating or the file system has no such locks, nobody waits.
    """
    for attempt in range(TRIES):
        with open(lock, "ab") as handle:
            _flock(handle, "LOCK_EX")
            # if its last holder has removed it meanwhile, a newcomer would lock another file
            if attempt < TRIES - 1 and not _is_at(handle, lock):
                continue
            try:
                yield
            finally:
                with suppress(OSError):
                    lock.unlink()
                _flock(handle, "LOCK_UN")  # a process that was forked meanwhile has it open, too
            return


def _flock(handle: BinaryIO, how: str) -> None:
    if fcntl is not None:
        with suppress(OSError):  # of a file system without locks
            fcntl.flock(handle, getattr(fcntl, how))


def _is_at(handle: BinaryIO, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), os.stat(file))
    except FileNotFoundError:
        return False
