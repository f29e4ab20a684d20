"""The source tree that goes to a host: its id, its archive, and what arrives."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from trainer import source
from trainer.errors import InputError

TREE = {"trainer/a.py": "print(1)\n", "trainer/run.sh": "#!/bin/sh\n", "data/电场.txt": "ε₀\n", ".gitignore": "*.log\n"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for name, text in TREE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    (root / "trainer" / "run.sh").chmod(0o755)
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    return root


def git(root: Path, *words: str) -> None:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    subprocess.run(["git", "-C", str(root), *words], check=True, env=environment, capture_output=True)


def identity(root: Path) -> str:
    return str(source.describe(root)["source_id"])


def unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            path = folder / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = tar.extractfile(member)
            assert stream is not None and member.isreg()
            path.write_bytes(stream.read())
            path.chmod(member.mode)
    return folder


def test_a_tree_is_described_by_id_files_and_bytes(checkout: Path) -> None:
    size = sum(len(text.encode()) for text in TREE.values())
    found = source.describe(checkout)
    assert {**found, "source_id": ""} == {"source_id": "", "files": len(TREE), "bytes": size}
    assert len(found["source_id"]) == 16 and int(found["source_id"], 16) >= 0


def test_the_id_depends_on_content_name_and_mode(checkout: Path) -> None:
    ids = [identity(checkout)]
    (checkout / "trainer" / "a.py").write_text("print(2)\n")
    ids.append(identity(checkout))
    (checkout / "trainer" / "a.py").rename(checkout / "trainer" / "b.py")
    ids.append(identity(checkout))
    (checkout / "trainer" / "b.py").chmod(0o755)
    ids.append(identity(checkout))
    assert len(set(ids)) == 4


def test_the_id_depends_on_neither_times_nor_the_order_of_making(checkout: Path) -> None:
    first = identity(checkout)
    for name in TREE:
        os.utime(checkout / name, (1, 1))
    text = (checkout / "trainer" / "a.py").read_text()
    (checkout / "trainer" / "a.py").unlink()
    (checkout / "trainer" / "a.py").write_text(text)
    (checkout / "trainer" / "a.py").chmod(0o600)  # readable by others or not: git does not keep it either
    assert identity(checkout) == first


def test_untracked_files_belong_to_it_ignored_and_deleted_ones_do_not(checkout: Path) -> None:
    first = identity(checkout)
    (checkout / "trainer" / "noise.log").write_text("ignored")
    assert identity(checkout) == first
    (checkout / "trainer" / "new.py").write_text("untracked")
    assert "trainer/new.py" in source.listed_files(checkout) and identity(checkout) != first
    (checkout / "trainer" / "new.py").unlink()
    assert identity(checkout) == first
    (checkout / "trainer" / "a.py").unlink()
    assert "trainer/a.py" not in source.listed_files(checkout) and identity(checkout) != first


def test_the_archive_depends_on_the_content_only(checkout: Path, tmp_path: Path) -> None:
    first = source.pack(checkout, tmp_path / "one" / "first.tar.gz")
    before = os.umask(0o077)
    try:
        for name in TREE:
            os.utime(checkout / name, (1, 1))
            (checkout / name).chmod((checkout / name).stat().st_mode & ~0o077)  # as another umask checks it out
        second = source.pack(checkout, tmp_path / "second.tgz")
    finally:
        os.umask(before)
    content = Path(first["archive"]).read_bytes()
    assert content == Path(second["archive"]).read_bytes()
    assert first["sha256"] == second["sha256"] == hashlib.sha256(content).hexdigest()
    assert {**source.describe(checkout), "archive": first["archive"], "sha256": first["sha256"]} == first


def test_an_unpacked_archive_is_the_tree_that_was_packed(checkout: Path, tmp_path: Path) -> None:
    packed = source.pack(checkout, tmp_path / "tree.tar.gz")
    tree = unpack(tmp_path / "tree.tar.gz", tmp_path / "host")
    (tree / "trainer" / "__pycache__").mkdir()
    (tree / "trainer" / "__pycache__" / "a.pyc").write_bytes(b"made by looking at it")
    assert source.verify(tree, packed["source_id"]) == packed["source_id"]


def change_byte(tree: Path) -> None:
    (tree / "trainer" / "a.py").write_text("print(3)\n")


def add_file(tree: Path) -> None:
    (tree / "extra.py").write_text("")


def remove_file(tree: Path) -> None:
    (tree / "data" / "电场.txt").unlink()


def change_mode(tree: Path) -> None:
    (tree / "trainer" / "a.py").chmod(0o755)


@pytest.mark.parametrize("damage", [change_byte, add_file, remove_file, change_mode])
def test_a_tree_that_differs_is_refused(checkout: Path, tmp_path: Path, damage: object) -> None:
    packed = source.pack(checkout, tmp_path / "tree.tar.gz")
    tree = unpack(tmp_path / "tree.tar.gz", tmp_path / "host")
    source.verify(tree, packed["source_id"])
    damage(tree)  # type: ignore[operator]
    with pytest.raises(InputError, match=f"expected {packed['source_id']}; pack and send it again"):
        source.verify(tree, packed["source_id"])


@pytest.mark.parametrize("target", ["a.py", "../data", "nowhere"])
def test_a_symlink_is_refused_when_packing_and_when_verifying(checkout: Path, tmp_path: Path, target: str) -> None:
    packed = source.pack(checkout, tmp_path / "tree.tar.gz")
    tree = unpack(tmp_path / "tree.tar.gz", tmp_path / "host")
    for root in (checkout, tree):
        (root / "trainer" / "link").symlink_to(target)
    with pytest.raises(InputError, match="'trainer/link' in the source tree is not a regular file"):
        source.pack(checkout, tmp_path / "again.tar.gz")
    with pytest.raises(InputError, match="'trainer/link' in the source tree is not a regular file"):
        source.verify(tree, packed["source_id"])


def test_a_tree_that_changes_while_it_is_packed_is_not_sent(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tarfile.TarFile.addfile

    def meddling(self: tarfile.TarFile, *words: object) -> None:
        real(self, *words)  # type: ignore[arg-type]
        (checkout / "trainer" / "a.py").write_text("print(9)\n")

    with monkeypatch.context() as patched:
        patched.setattr(tarfile.TarFile, "addfile", meddling)
        with pytest.raises(InputError, match="changed while it was packed; run it again"):
            source.pack(checkout, tmp_path / "tree.tar.gz")
    assert not (tmp_path / "tree.tar.gz").exists()
    source.pack(checkout, tmp_path / "tree.tar.gz")


def test_a_folder_that_is_no_checkout_is_refused(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with pytest.raises(InputError, match="cannot be listed by git .* use a clone"):
        source.describe(tmp_path / "plain")
    (checkout / "ignored.log").mkdir()  # as the embedded host below a checkout: git knows nothing in it
    with pytest.raises(InputError, match="git knows no file in .* use a clone"):
        source.describe(checkout / "ignored.log")


def test_a_file_name_that_is_not_utf8_is_refused(checkout: Path) -> None:
    path = os.path.join(os.fsencode(checkout), b"bad\xff.txt")
    with open(path, "wb"):
        pass
    with pytest.raises(InputError, match="is not UTF-8; rename it"):
        source.describe(checkout)
    os.unlink(path)
    source.describe(checkout)
