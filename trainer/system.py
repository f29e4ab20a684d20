"""Calls of Linux that Python does not have: a file system written out at one go, two names exchanged. No torch.

Runs on Python 3.8 with the standard library alone.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

HAS_SYNCFS_ERRORS = (5, 8)  # the Linux whose syncfs tells of what could not be written
RENAME_EXCHANGE, AT_FDCWD = 2, -100


def sync_file_system(tree: Path) -> bool:
    """Write out the file system at one go, which thousands of small files want; False where that cannot be trusted."""
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if version is None or (int(version[1]), int(version[2])) < HAS_SYNCFS_ERRORS:
        return False
    descriptor = os.open(tree, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _is_done_by_system("syncfs", descriptor)
    finally:
        os.close(descriptor)


def exchange(one: Path, other: Path) -> bool:
    """Let two folders change their names at once; False where the system cannot."""
    names = (AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other))
    return _is_done_by_system("renameat2", *names, RENAME_EXCHANGE)


def _is_done_by_system(name: str, *words: Any) -> bool:
    """Call a function of the C library that Python does not have; False where the system has or allows it not."""
    try:
        import ctypes  # not in every Python

        call = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (ImportError, AttributeError, OSError, TypeError):
        return False
    if call(*words) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
        return False
    raise OSError(number, os.strerror(number))
