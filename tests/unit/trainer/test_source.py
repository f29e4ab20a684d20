"""The source tree that goes to a host: its id, its archive, and what arrives."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from trainer import content, source
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


def unpack(archive: bytes, folder: Path) -> Path:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
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


def packed(root: Path) -> bytes:
    stream = io.BytesIO()
    assert source.pack(root, stream) == source.describe(root)
    return stream.getvalue()


def test_the_archive_depends_on_the_content_only(checkout: Path) -> None:
    first = packed(checkout)
    before = os.umask(0o077)
    try:
        for name in TREE:
            os.utime(checkout / name, (1, 1))
            (checkout / name).chmod((checkout / name).stat().st_mode & ~0o077)  # as another umask checks it out
        assert packed(checkout) == first
    finally:
        os.umask(before)
    (checkout / "trainer" / "a.py").write_text("print(2)\n")
    assert packed(checkout) != first


def test_an_unpacked_archive_is_the_tree_that_was_packed(checkout: Path, tmp_path: Path) -> None:
    assert content.verify(unpack(packed(checkout), tmp_path / "host"), "") == identity(checkout)


@pytest.mark.parametrize("target", ["a.py", "../data", "nowhere"])
def test_a_symlink_is_refused(checkout: Path, target: str) -> None:
    source.pack(checkout, io.BytesIO())
    (checkout / "trainer" / "link").symlink_to(target)
    with pytest.raises(InputError, match="'trainer/link' in the source tree is not a regular file"):
        source.pack(checkout, io.BytesIO())


def test_a_tree_that_changes_while_it_is_packed_is_not_sent(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tarfile.TarFile.addfile

    def meddling(self: tarfile.TarFile, *words: object) -> None:
        real(self, *words)  # type: ignore[arg-type]
        (checkout / "trainer" / "a.py").write_text("print(9)\n")

    with monkeypatch.context() as patched:
        patched.setattr(tarfile.TarFile, "addfile", meddling)
        with pytest.raises(InputError, match="changed while it was packed; run it again"):
            source.pack(checkout, io.BytesIO())
    source.pack(checkout, io.BytesIO())


def test_a_folder_in_which_git_knows_nothing_is_refused(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    for folder in (tmp_path / "plain", checkout / "ignored.log"):  # the second as an embedded host below a checkout
        folder.mkdir(exist_ok=True)
        with pytest.raises(InputError, match="git knows no file in .* use a clone"):
            source.describe(folder)
    (tmp_path / "plain" / "a.py").write_text("")
    assert source.describe(tmp_path / "plain")["files"] == 1


def test_a_downloaded_archive_without_a_repository_is_the_same_tree(checkout: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(checkout, plain, ignore=shutil.ignore_patterns(".git"))
    (plain / "trainer" / "noise.log").write_text("ignored there, too")
    assert source.describe(plain) == source.describe(checkout)


def test_a_repository_that_git_cannot_read_is_refused_in_its_words(checkout: Path) -> None:
    source.describe(checkout)
    (checkout / ".git" / "HEAD").write_text("damaged")
    with pytest.raises(InputError, match="cannot be listed by git .*not a git repository.* use a clone"):
        source.describe(checkout)


def test_without_git_the_sentence_says_so(checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("PATH", str(tmp_path))
        with pytest.raises(InputError, match="git is not installed here"):
            source.describe(checkout)
    source.describe(checkout)


def test_a_tree_that_is_too_large_names_its_largest_file(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "weights.bin").write_bytes(b"w" * (2 << 20))
    source.describe(checkout)
    monkeypatch.setattr(source, "LIMIT_BYTES", 1 << 20)
    with pytest.raises(InputError, match="holds 2 MiB, the most is 1 .*'weights.bin' with 2"):
        source.describe(checkout)


def test_a_file_name_that_is_not_utf8_is_refused(checkout: Path) -> None:
    path = os.path.join(os.fsencode(checkout), b"bad\xff.txt")
    with open(path, "wb"):
        pass
    with pytest.raises(InputError, match="is not UTF-8; rename it"):
        source.describe(checkout)
    os.unlink(path)
    source.describe(checkout)
