"""Files that are never half written, and folders that one writes into at a time."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

TRIES = 1_000  # some network file systems give a file another identity whenever they are asked


def write_atomically(file: Path, content: bytes) -> None:
    """Write a file so that at every moment either the old content or the new one stands there, whole."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}")  # other containers have this pid
    try:
        with open(temporary, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
