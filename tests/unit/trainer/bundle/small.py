"""Small bundles of both layouts, made with the standard library and not with the code that is tested."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainer import content
from trainer.bundle import apply
from trainer.state import Layout

Files = Mapping[str, str]
OLD = {"trainer/a.py": "print(1)\n", "data/电场.txt": "ε₀\n", "run.sh": "#!/bin/sh\n"}
NEW = {"trainer/a.py": "print(2)\n", "data/new.txt": "new\n", "run.sh": "#!/bin/sh\n"}
MADE_AT = 1_700_000_000
NEWER = MADE_AT + 60


def manifest(files: Files) -> str:
    return "".join(f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n" for name, text in sorted(files.items()))


def pack(folder: Path, files: Files, name: str = "x.tar.gz", made_at: int = MADE_AT, outer: bool = True) -> Path:
    """A bundle as it is built: regular files only, the manifest as the last member, its sha256 beside."""
    listed = {**files, "SYNC_MANIFEST.sha256": manifest(files)}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for member, text in listed.items():
            info = tarfile.TarInfo(member)
            info.size, info.mtime, info.mode = len(text.encode()), made_at, 0o755 if member.endswith(".sh") else 0o644
            tar.addfile(info, io.BytesIO(text.encode()))
    return write(folder / name, gzip.compress(packed.getvalue(), mtime=0), outer)


def write(path: Path, data: bytes, outer: bool = True) -> Path:
    """An archive and, with `outer`, its sha256 beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if outer:
        path.with_name(f"{path.name}.sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  {path.name}\n")
    return path


def source_id(files: Files) -> str:
    """The id that a tree with these files must have as a release."""
    listed = {**files, "SYNC_MANIFEST.sha256": manifest(files)}
    found = [(n, n.endswith(".sh"), hashlib.sha256(text.encode()).hexdigest()) for n, text in sorted(listed.items())]
    return content.source_id(found)


def seen(root: Path) -> dict[str, str]:
    """What somebody sees through `code`: {path: text} of all regular files but the record."""
    code = root / "code"
    return {
        name: (code / name).read_text(encoding="utf-8")
        for name in content.walked_files(code.resolve())
        if name != "SYNC_MANIFEST.sha256"
    }


def snapshot(folder: Path) -> dict[str, Any]:
    """Everything that tells whether anything below a folder was touched: kinds, modes, times, inodes and bytes."""
    found: dict[str, Any] = {}
    for path in sorted([folder, *folder.rglob("*")]):
        state = os.lstat(path)
        held = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        key = str(path.relative_to(folder))
        found[key] = (state.st_mode, state.st_ino, state.st_nlink, state.st_mtime_ns, state.st_ctime_ns, held)
    return found


def left_over(root: Path) -> list[str]:
    """What no finished command leaves in a project root."""
    hidden = [path for folder in (root, root / "releases", root / "backups") for path in folder.glob(".*")]
    return sorted(path.name for path in hidden if path.name != ".lock")


class Host:
    """A project root, bundles beside it, and what was seen of both."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.layout = folder, Layout(folder / "host")
        self.root = self.layout.root
        self.old = pack(folder / "bundles", OLD, "old.tar.gz")
        self.new = pack(folder / "bundles", NEW, "new.tar.gz", NEWER)

    def apply(self, bundle: Path, **more: Any) -> dict[str, Any]:
        return apply.apply(apply.Request(self.layout, bundle, **more))

    def rollback(self) -> dict[str, Any]:
        return apply.rollback(self.layout, None, None)

    def seen(self) -> dict[str, str]:
        return seen(self.root)

    def unchanged(self, act: Callable[[], Any]) -> Any:
        """What `act` returns, which leaves no trace in the project root."""
        before = snapshot(self.root) if self.root.exists() else None
        try:
            return act()
        finally:
            assert (snapshot(self.root) if self.root.exists() else None) == before
