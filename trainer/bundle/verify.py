"""Whether a bundle is what it says: sha256, every byte of the archive, manifest and tree. Python 3.8, no torch."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

from trainer import content
from trainer.bundle import manifest, names
from trainer.bundle.files import READ_BYTES, Bundle, Reading, beside, opened, variants
from trainer.bundle.reader import Archive, Caps, Member
from trainer.errors import InputError

OUTER_BYTES = 4096
SHA1 = "the manifest is sha1: it guards against damage, not against somebody who made another file with the same sha1"


class Verified(NamedTuple):
    """What a bundle holds. `entries`: every regular file, the manifest too, sorted; `made_at`: the newest of its times
    (seconds since 1970; 0: unknown); `lines`: warnings to show."""

    name: str
    sha256: str
    has_outer: bool
    algorithm: str
    entries: list[content.Entry]
    made_at: int
    commit: str
    unpacked_bytes: int
    lines: list[str]


class Target:
    """Where the members of an archive go.

    `folder` is called once for a folder that is a member of its own, also behind files in it ("": the root itself);
    the folders of files need not be members.
    """

    def folder(self, name: str) -> None:
        """Take a folder."""
        raise NotImplementedError

    def file(self, member: Member, pieces: Iterator[bytes]) -> None:
        """Take a file with all of its content."""
        raise NotImplementedError

    def digests(self, algorithm: str) -> dict[str, tuple[str, str]]:
        """Name to (sha256, digest by `algorithm`) of every file that lies there now, in lower-case hex."""
        raise NotImplementedError


class Hashed(Target):
    """Writes nothing: the files' digests as they come by."""

    def __init__(self) -> None:
        self._digests: dict[str, dict[str, str]] = {}

    def folder(self, name: str) -> None:
        """A folder has no digest."""

    def file(self, member: Member, pieces: Iterator[bytes]) -> None:
        """Both digests at once: which one the manifest has may be known at the end only."""
        sha256, sha1 = hashlib.sha256(), hashlib.sha1()
        for piece in pieces:
            sha256.update(piece)
            sha1.update(piece)
        self._digests[member.name] = {"sha256": sha256.hexdigest(), "sha1": sha1.hexdigest()}

    def digests(self, algorithm: str) -> dict[str, tuple[str, str]]:
        """See Target."""
        return {name: (found["sha256"], found[algorithm]) for name, found in self._digests.items()}


def check(
    path: Path,
    *,
    without_sha256: bool,
    caps: Caps,
    target: Target,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verified:
    """Verify the bundle in the file `path` and give its members to `target`.

    The sha256 of the file comes first, then the whole archive under `caps`, then the manifest against what lies in the
    target. `progress` takes bytes done and bytes in all, over both readings of the file. InputError for whatever is
    wrong with the bundle, HostUnfit when it cannot be read.
    """
    bundle = Bundle(path)
    lines: list[str] = []
    with opened(path, bundle.shown) as file:
        first = Reading(file, bundle.shown, progress, 0)
        expected = _outer(bundle, without_sha256, lines)
        while first.read(READ_BYTES):
            pass
        sha256 = first.hexdigest()
        if expected not in ("", sha256):
            raise InputError(
                f"the sha256 of {bundle.shown} is {sha256}, its {names.shown(bundle.outer.name)} says {expected}; "
                "copy both again"
            )
        tree = _read_again(bundle, first, Reading(file, bundle.shown, progress, 1), caps, target)
    found, own = _manifest(bundle, tree, caps)
    if found.algorithm == "sha1":
        lines.append(f"{bundle.shown}: {SHA1}")
    entries = _compared(bundle, tree, found, own, target)
    return Verified(
        name=bundle.name, sha256=sha256, has_outer=bool(expected), algorithm=found.algorithm,
        entries=entries, made_at=tree.made_at, commit=tree.commit, unpacked_bytes=tree.unpacked_bytes, lines=lines,
    )  # fmt: skip


class _Tree:
    """What an archive brought: its members, the manifests among them, and its age."""

    def __init__(self) -> None:
        self.files: dict[str, Member] = {}
        self.manifests: dict[str, bytes] = {}
        self.made_at = self.unpacked_bytes = 0
        self.commit = ""


def _outer(bundle: Bundle, without: bool, lines: list[str]) -> str:
    """The sha256 that the bundle must have, "" when there is none and the user goes without."""
    data = beside(bundle.outer, OUTER_BYTES)
    shown = names.shown(os.fsencode(bundle.outer.name))
    if data is not None:
        return manifest.parse_outer(data, shown, bundle.name)
    if not without:
        raise InputError(
            f"there is no {shown} beside the bundle; bring it along, or accept the manifest inside alone with "
            "--without-sha256"
        )
    lines.append(f"there is no {shown}: only the manifest inside says that {bundle.shown} is whole")
    return ""


def _unpack(bundle: Bundle, stream: Reading, caps: Caps, target: Target) -> _Tree:
    """Give the whole archive to the target."""
    tree = _Tree()
    archive = Archive(stream, caps, bundle.shown)
    for member, pieces in archive:
        if _is_odd_manifest(member):
            raise InputError(
                f"{member.place}: the manifest is a file {manifest.NAME}; rename this and build the bundle again"
            )
        if member.is_folder:
            target.folder(member.name)
            continue
        tree.files[member.name] = member
        tree.made_at = max(tree.made_at, member.mtime)
        if member.name in (manifest.NAME, manifest.OLD_NAME):
            if member.size > caps.manifest_bytes:
                raise InputError(
                    f"{member.place}: {member.size} bytes, a manifest has at most {caps.manifest_bytes}; "
                    "build a smaller bundle"
                )
            kept = list(pieces)
            tree.manifests[member.name] = b"".join(kept)
            pieces = iter(kept)
        target.file(member, pieces)
    tree.commit, tree.unpacked_bytes = archive.commit, archive.unpacked_bytes
    return tree


def _read_again(bundle: Bundle, first: Reading, second: Reading, caps: Caps, target: Target) -> _Tree:
    """Unpack what the second reading brings, and hold it against the first one."""
    changed = InputError(f"the bundle {bundle.shown} changed while it was read; run it again when it is complete")
    try:
        tree = _unpack(bundle, second, caps, target)
    except InputError:
        if first.is_unchanged():
            raise
        raise changed from None
    if first.hexdigest() != second.hexdigest():
        raise changed
    return tree


def _is_odd_manifest(member: Member) -> bool:
    """Whether a member has the manifest's name but for case, is a folder of that name, or lies in one."""
    top = member.name.partition("/")[0]
    is_file = member.name == manifest.NAME and not member.is_folder
    return not is_file and names.form(top) == names.form(manifest.NAME)


def _manifest(bundle: Bundle, tree: _Tree, caps: Caps) -> tuple[manifest.Manifest, str]:
    """The manifest of the bundle, the new one in any form, else the old one inside; and its name in the tree, "" when
    it lies beside only."""
    outside = beside(bundle.manifest, caps.manifest_bytes)
    shown = names.shown(os.fsencode(bundle.manifest.name))
    for odd in variants(bundle.manifest) if outside is None else []:
        raise InputError(f"{names.shown(os.fsencode(odd))} lies beside {bundle.shown}; rename it to {shown}")
    inside = tree.manifests.get(manifest.NAME)
    if outside is not None and inside is not None and outside != inside:
        raise InputError(f"{shown} is not equal to {manifest.NAME} in {bundle.shown}; bring the files of one bundle")
    data = inside if inside is not None else outside
    if data is not None:
        shown = f"{manifest.NAME} in {bundle.shown}" if inside is not None else shown
        found = manifest.parse(data, shown, manifest.NAME)
        if found.algorithm != "sha256":
            raise InputError(f"{shown} line 1: 40 hex digits, where sha256 has 64; {manifest.AGAIN}")
        return found, manifest.NAME if inside is not None else ""
    old = tree.manifests.get(manifest.OLD_NAME)
    if old is None:
        raise InputError(
            f"{bundle.shown} has neither {manifest.NAME} nor {manifest.OLD_NAME} at its top; build the bundle again"
        )
    return manifest.parse(old, f"{manifest.OLD_NAME} in {bundle.shown}", manifest.OLD_NAME), manifest.OLD_NAME


def _compared(bundle: Bundle, tree: _Tree, listed: manifest.Manifest, own: str, target: Target) -> list[content.Entry]:
    """The entries of the tree, which has the files that the manifest lists, and no other but the manifest itself."""
    lying = target.digests(listed.algorithm)
    wanted = set(listed.digests) | ({own} if own else set())
    different = {name for name, digest in listed.digests.items() if lying.get(name, ("", digest))[1] != digest}
    different |= {
        name for name, data in tree.manifests.items() if lying.get(name, (_sha256(data),))[0] != _sha256(data)
    }
    findings = [
        f"{bundle.shown} {words} ({_some(found)}); copy the bundle again, or build it again"
        for found, words in (
            (wanted - set(lying), "lacks files that its manifest lists"),
            (set(lying) - wanted, "has files that its manifest does not list"),
            (different, "has files that are not what its manifest says"),
        )
        if found
    ]
    if findings:
        raise InputError(findings[0], findings[1:])
    return sorted((name, tree.files[name].executable, sha256) for name, (sha256, _) in lying.items())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _some(found: set[str]) -> str:
    first = ", ".join(names.shown(name) for name in sorted(found)[:3])
    return first + (f" and {len(found) - 3} more" if len(found) > 3 else "")
