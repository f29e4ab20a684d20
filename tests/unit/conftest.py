"""Lets tests of Ansible plugins and tests with torch live in one run."""

from __future__ import annotations

import sys

_intern = sys.intern


def intern(string: str, /) -> str:
    """`sys.intern` that also takes subclasses of `str`.

    Ansible puts an object in the place of `sys.intern` that can do this, and torch, which compiles only with
    a function of this signature there, cannot be imported any more. What can do it already, Ansible leaves alone.
    """
    return _intern(str(string) if isinstance(string, str) else string)


sys.intern = intern
