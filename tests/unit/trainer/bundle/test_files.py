"""Files of a bundle on a disk: what is opened, what is read, what is called what."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from trainer.bundle import files
from trainer.errors import HostUnfit, InputError


def test_what_lies_beside_a_bundle_has_its_name() -> None:
    for name in ("a.b.tar.gz", "a.b.tgz"):
        bundle = files.Bundle(Path("/there") / name)
        assert bundle.outer == Path(f"/there/{name}.sha256")
        assert bundle.manifest == Path("/there/a.b.SYNC_MANIFEST.sha256")
    assert files.Bundle(Path("a\n.tar.gz")).shown == "'a\\x0a.tar.gz'"


def test_two_readings_of_a_file_are_each_whole(tmp_path: Path) -> None:
    path, seen = tmp_path / "a", []
    path.write_bytes(os.urandom(5000))
    with files.opened(path, "a") as descriptor:
        first = files.Reading(descriptor, "a", lambda done, total: seen.append((done, total)), 0)
        second = files.Reading(descriptor, "a", lambda done, total: seen.append((done, total)), 1)
        assert first.read(3000) + first.read(3000) + first.read(3000) == path.read_bytes()
        assert second.read(9000) == path.read_bytes()
        assert first.hexdigest() == second.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()
        assert seen == [(3000, 10000), (5000, 10000), (5000, 10000), (10000, 10000)]
        assert first.is_unchanged()
        with path.open("ab") as stream:
            stream.write(b"more")
        assert not first.is_unchanged()


def test_a_disk_that_fails_is_not_the_bundles_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    assert files.beside(path, 1) == b"1"
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(HostUnfit, match="'a' cannot be read .Input/output error.; look at the disk"):
        files.beside(path, 1)


def test_a_small_file_is_read_up_to_its_cap_and_absent_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert files.beside(path, 5) is None
    path.write_bytes(b"12345")
    assert files.beside(path, 5) == b"12345"
    with pytest.raises(InputError, match="'a' has more than 4 bytes"):
        files.beside(path, 4)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(InputError, match="'a' cannot be opened"):
        files.beside(path, 4)


def test_names_that_differ_in_case_only_are_variants(tmp_path: Path) -> None:
    for name in ("X.Sha256", "x.sha256", "x.sha25", "é"):
        (tmp_path / name).touch()
    assert files.variants(tmp_path / "x.sha256") == ["X.Sha256"]
    assert files.variants(tmp_path / "E\u0301") == ["é"]
    assert files.variants(tmp_path / "nowhere" / "x") == []
