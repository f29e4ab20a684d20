"""The staging of an apply: a private folder, in which a tree is made by us, file by file, and looked at again.

Standard library alone, Python 3.8. No torch.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from pathlib import Path
from typing import Any, Iterator, NamedTuple

from trainer.bundle.held import FOLDER_MODE, Held
from trainer.bundle.names import shown
from trainer.bundle.reader import Member
from trainer.bundle.verify import Target
from trainer.errors import HostUnfit, InputError

APPLYING, KEPT = ".applying-", ".kept-"
TREE = "tree"
HASHERS = 2  # threads: reading and hashing release the interpreter's lock
OPEN_FOLDERS = 64  # more than a name is deep
READ_BYTES = 1 << 20
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
OLD_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Written(NamedTuple):
    """What was asked of a file: its permission bits, and its size in bytes."""

    mode: int
    size: int


class Staging(Target):
    """Where a bundle is unpacked (a Target): made at the first member, gone at the end unless it was moved away.

    `parent`: the folder that holds it, on the file system of the releases; `wanted`: these, to be made with it. What is
    created: regular files of mode 0644 or 0755 and folders of mode 0755, ours, whatever the umask and the archive say.
    """

    def __init__(self, parent: Path, wanted: Path | None = None) -> None:
        self._held = Held(parent, APPLYING, wanted)
        self._root = -1
        self._open: dict[str, int] = {}  # the last ones used: folders are opened one below the other
        self._folders: set[str] = set()
        self._files: dict[str, Written] = {}

    @property
    def tree(self) -> Path:
        """The root of the tree; made when it is asked for first."""
        if self._root < 0:
            path = self._held.make()
            os.mkdir(path / TREE, FOLDER_MODE)
            self._root = os.open(path / TREE, FOLDER)
            _set_mode(self._root, FOLDER_MODE)
        return self._held.path / TREE

    def folder(self, name: str) -> None:
        """A folder of the tree; the root has the empty name."""
        self._descriptor(name)

    def file(self, member: Member, pieces: Iterator[bytes]) -> None:
        """A file of the tree with these bytes; InputError where its name is taken."""
        mode = 0o755 if member.executable else 0o644
        above, _, name = member.name.rpartition("/")
        folder = self._descriptor(above)
        try:
            descriptor = os.open(name, NEW_FILE, mode, dir_fd=folder)
        except FileExistsError:
            raise _taken(member.name) from None
        try:
            size = 0
            for piece in pieces:
                size += len(piece)
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            _set_mode(descriptor, mode)
        finally:
            os.close(descriptor)
        self._files[member.name] = Written(mode, size)

    def digests(self, algorithm: str) -> dict[str, tuple[str, str]]:
        """{name: (sha256, digest by `algorithm`)} of the files that lie there, read again.

        HostUnfit when what lies there is not, one for one, what was made here.
        """
        self._look()
        found: dict[str, tuple[str, str]] = {}
        names = iter(sorted(self._files, key=lambda name: -self._files[name].size))
        problems: list[BaseException] = []

        def hash_some() -> None:
            try:
                for name in names:  # both take from it
                    found[name] = self._hashed(name, algorithm)
                    if problems:
                        return
            except BaseException as problem:  # noqa: B036 - raised below, where it is seen
                problems.append(problem)

        threads = [threading.Thread(target=hash_some, daemon=True) for _ in range(HASHERS)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as problem:
            problems.append(problem)  # they stop at the next file
            raise
        if problems:
            raise problems[0]
        return found

    def keep(self, name: str) -> Path | None:
        """Give what is there another name, beside; None when nothing was made yet."""
        if self._root < 0 or not (self._held.path / TREE).is_dir():
            return None
        kept = self._held.path.with_name(KEPT + name)
        os.rename(self._held.path / TREE, kept)
        return kept

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        descriptors = [*self._open.values(), self._root] if self._root >= 0 else []
        self._open.clear()
        for descriptor in descriptors:
            os.close(descriptor)
        self._root = -1
        self._held.remove(keep_above=kind is None)

    def _descriptor(self, name: str) -> int:
        """An open folder of the tree, made with those above it where it is missing."""
        if not name:
            self.tree  # noqa: B018 - makes it
            return self._root
        descriptor = self._open.pop(name, -1)
        if descriptor < 0:
            above, _, last = name.rpartition("/")
            parent = self._descriptor(above)
            if name not in self._folders:
                try:
                    os.mkdir(last, FOLDER_MODE, dir_fd=parent)
                except FileExistsError:
                    raise _taken(name) from None
                self._folders.add(name)
            descriptor = os.open(last, FOLDER, dir_fd=parent)
            _set_mode(descriptor, FOLDER_MODE)
        self._open[name] = descriptor
        if len(self._open) > OPEN_FOLDERS:
            os.close(self._open.pop(next(iter(self._open))))
        return descriptor

    def _look(self) -> None:
        """Hold the names, kinds, owners and modes that lie there against what was made; HostUnfit names the first."""
        self.tree  # noqa: B018 - an archive without any member has one, too
        owner = os.fstat(self._root).st_uid
        files, folders, waiting = set(), set(), [""]
        while waiting:
            above = waiting.pop()
            for entry in _listed(self._root, above):
                name = f"{above}/{entry.name}" if above else entry.name
                state = entry.stat(follow_symlinks=False)
                if name in self._folders and stat.S_ISDIR(state.st_mode):
                    folders.add(name)
                    waiting.append(name)
                    continue
                wanted = self._files.get(name)
                kind = (stat.S_ISREG(state.st_mode), state.st_nlink, state.st_uid)
                if wanted is None or kind != (True, 1, owner):
                    raise _another(name, "is not what was made there")
                if Written(stat.S_IMODE(state.st_mode), state.st_size) != wanted:
                    held = f"has the mode {stat.S_IMODE(state.st_mode):o} and {state.st_size} bytes"
                    raise _another(name, f"{held}, not {wanted.mode:o} and {wanted.size}")
                files.add(name)
        missing = sorted((set(self._files) - files) | (self._folders - folders))
        if missing:
            raise _another(missing[0], "is gone")

    def _hashed(self, name: str, algorithm: str) -> tuple[str, str]:
        """(sha256, digest by algorithm) of a file, whose folders are known to be folders."""
        wanted, size = hashlib.sha256(), 0
        more = hashlib.new(algorithm) if algorithm != "sha256" else None
        descriptor = os.open(name, OLD_FILE, dir_fd=self._root)
        try:
            while True:
                piece = os.read(descriptor, READ_BYTES)
                if not piece:
                    break
                size += len(piece)
                wanted.update(piece)
                if more:
                    more.update(piece)
        finally:
            os.close(descriptor)
        if size != self._files[name].size:
            raise _another(name, f"has {size} bytes, not {self._files[name].size}")
        return wanted.hexdigest(), (more or wanted).hexdigest()


def _listed(root: int, name: str) -> list[os.DirEntry[str]]:
    """What lies in a folder below an open one; its `stat` needs no open folder any more."""
    descriptor = os.open(name or ".", FOLDER, dir_fd=root)
    try:
        with os.scandir(descriptor) as found:
            listed = list(found)
        for entry in listed:
            entry.stat(follow_symlinks=False)  # kept by the entry
        return listed
    finally:
        os.close(descriptor)


def _set_mode(descriptor: int, mode: int) -> None:
    """Permission bits whatever the umask and the defaults of the folder; a folder keeps the group's mark."""
    found = stat.S_IMODE(os.fstat(descriptor).st_mode)
    if found & 0o777 != mode:
        os.fchmod(descriptor, mode | (found & stat.S_ISGID))


def _taken(name: str) -> InputError:
    return InputError(
        f"the member {shown(name)} is there already under this name, or under one that this file system holds to "
        "be the same; make the bundle again without it"
    )


def _another(name: str, words: str) -> HostUnfit:
    return HostUnfit(f"the file {shown(name)} in staging {words}: somebody else wrote there; run it again")
