"""The archive of a bundle."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from tests.unit.trainer.bundle.sources import TEXTS, make
from trainer.bundle import manifest, packing, reading, tree, whitelist
from trainer.bundle.provenance import Provenance
from trainer.bundle.reader import Caps
from trainer.errors import InputError

TOKEN = "hf_" + "aB3dE6gH9j" * 4


def pack(source: Path, origin: Provenance = Provenance("", 0, [])) -> tuple[packing.Packed, bytes, list[int]]:  # noqa: B008 - only read
    found = tree.look(source, whitelist.load(source / whitelist.NAME), lambda name: False, Caps())
    stream, done = io.BytesIO(), []
    packed = packing.pack(source, found.files, origin, stream, lambda now, total: done.append(now))
    return packed, stream.getvalue(), done


def test_the_archive_holds_regular_files_and_the_manifest_as_the_last_of_them(tmp_path: Path) -> None:
    source = make(tmp_path)
    (source / "trainer" / "a.py").chmod(0o700)
    packed, data, done = pack(source, Provenance("0123456789" * 4, 1700000000, []))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
        assert archive.pax_headers == {"comment": "0123456789" * 4}
        contents = {one.name: archive.extractfile(one).read() for one in members}  # type: ignore[union-attr]
    assert [one.name for one in members] == [*TEXTS, manifest.NAME]
    assert [one.mode for one in members] == [0o644, 0o644, 0o755, 0o644, 0o644]
    assert {(one.mtime, one.uid, one.gid, one.uname, one.gname) for one in members} == {(1700000000, 0, 0, "", "")}
    assert all(contents[name] == text.encode() for name, text in TEXTS.items())
    assert contents[manifest.NAME] == packed.manifest == manifest.render(packed.digests)
    assert packed.sha256 == hashlib.sha256(data).hexdigest()
    assert done[-1] == sum(len(text) for text in TEXTS.values())


def test_the_entries_are_those_of_all_files_the_manifest_too(tmp_path: Path) -> None:
    packed, _, _ = pack(make(tmp_path))
    assert [name for name, _, _ in packed.entries] == sorted([*TEXTS, manifest.NAME])
    assert {name: digest for name, _, digest in packed.entries if name != manifest.NAME} == {
        name: hashlib.sha256(text.encode()).hexdigest() for name, text in TEXTS.items()
    }


def test_every_secret_is_told_with_its_place_and_never_its_value(tmp_path: Path) -> None:
    texts = {
        **TEXTS,
        "data/a.jsonl": f"one\n\ntoken = {TOKEN}\n",
        "trainer/z.py": "-----BEGIN " + "RSA PRIVATE KEY-----\nabc\n",
    }
    with pytest.raises(InputError) as caught:
        pack(make(tmp_path / "wrong", texts))
    found = [*caught.value.lines, str(caught.value)]
    assert [text.partition(":")[0] for text in found] == ["'data/a.jsonl', line 3", "'trainer/z.py', line 1"]
    assert "a Hugging Face token" in found[0] and "a private key" in found[1]
    assert TOKEN not in "".join(found) and "RSA" not in "".join(found)
    pack(make(tmp_path / "sound", {**TEXTS, "data/a.jsonl": f"one\n\ntoken = {TOKEN[:32]}\n"}))


def test_a_secret_across_two_reads_is_found(tmp_path: Path) -> None:
    text = b" " * (reading.PIECE_BYTES - 20) + TOKEN.encode() + b"\n"
    with pytest.raises(InputError, match=r"'data/large', line 1: what looks like a Hugging Face token"):
        pack(make(tmp_path, {**TEXTS, "data/large": text}))


def test_what_two_files_make_together_is_no_secret(tmp_path: Path) -> None:
    packed, _, _ = pack(make(tmp_path, {**TEXTS, "data/a": TOKEN[:20], "data/b": TOKEN[20:]}))
    assert len(packed.digests) == len(TEXTS) + 2
