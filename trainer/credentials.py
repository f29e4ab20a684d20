"""Secrets of a plan (the hub's token): a 0600 file for as long as a plan may need it, nothing else. No torch.

Whoever needs one reads the file; it is put into no environment, which every child process would inherit and
/proc would show for the whole life of the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from trainer.config import suggestion
from trainer.errors import InputError
from trainer.process import is_locked
from trainer.state import Layout, sync_folder

NAMES = ("hf_token",)
_ENVIRONMENT = {"hf_token": ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")}
_MASK = "***"
_SHORTEST = 8  # a shorter value would be found by chance in innocent text


def folder(layout: Layout) -> Path:
    """Where secrets lie: 0700, beside the outputs, so that nothing that is collected holds them."""
    return layout.root / ".secrets"


def put(layout: Layout, name: str, given: str) -> None:
    """Keep a secret: the bare value, or {"value": …} as JSON. InputError never shows it."""
    if name not in NAMES:
        raise InputError(f"there is no secret {name!r}{suggestion(name, NAMES)}; known: {', '.join(NAMES)}")
    value = given.strip()
    if value.startswith("{"):
        with contextlib.suppress(ValueError, AttributeError):
            value = str(json.loads(value).get("value") or "").strip()
    if not re.fullmatch(r"[!-~]{8,512}", value):
        raise InputError(f"the secret {name} on standard input is not one line of 8 to 512 printable characters")
    place = folder(layout)
    place.mkdir(parents=True, exist_ok=True)
    place.chmod(0o700)
    fresh = place / f".{name}.{os.getpid()}.tmp"
    fresh.unlink(missing_ok=True)
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(value)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(fresh, place / name)
    finally:
        fresh.unlink(missing_ok=True)
    sync_folder(place)


def get(layout: Layout, name: str) -> str | None:
    """A secret that was put here, else the host's own from its environment, else None."""
    with contextlib.suppress(OSError):
        return (folder(layout) / name).read_text(encoding="ascii").strip() or None
    return next((os.environ[key].strip() for key in _ENVIRONMENT[name] if os.environ.get(key, "").strip()), None)


def forget(layout: Layout) -> bool:
    """Remove every secret that was put here; before that, mask it where a library may have logged it.

    Returns whether there was one.
    """
    place = folder(layout)
    if not place.is_dir():
        return False
    values = known(layout)
    for log in sorted(layout.logs.glob("*")) if values else []:
        mask_file(log, values)
    found = False
    for name in sorted(place.iterdir()):  # also what an interrupted `put` left
        name.unlink(missing_ok=True)
        found = True
    with contextlib.suppress(OSError):
        place.rmdir()
    return found


def forget_unless_running(layout: Layout) -> bool:
    """As `forget`, but a running plan keeps what it may need; it forgets at its end."""
    return not is_locked(layout.lock) and forget(layout)


def known(layout: Layout) -> list[str]:
    """The values that must never be shown: those of the files and of the environment, the longest first."""
    found = {value for name in NAMES if (value := get(layout, name))}
    for names in _ENVIRONMENT.values():
        found |= {os.environ[key].strip() for key in names if os.environ.get(key, "").strip()}
    return sorted((value for value in found if len(value) >= _SHORTEST), key=len, reverse=True)


def scrub(text: str, values: Iterable[str]) -> str:
    """`text` without these values."""
    for value in values:
        text = text.replace(value, _MASK)
    return text


def mask_file(path: Path, values: Iterable[str]) -> None:
    """Overwrite these values in a file by as many asterisks, in place: whoever appends is not disturbed."""
    with contextlib.suppress(OSError), path.open("r+b") as stream:
        text = stream.read()
        for value in (value.encode() for value in values):
            at = text.find(value)
            while at >= 0:
                stream.seek(at)
                stream.write(b"*" * len(value))
                at = text.find(value, at + len(value))
