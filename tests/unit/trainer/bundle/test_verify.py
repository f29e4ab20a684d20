"""Bundles that are what they say, and the nearly identical ones that are not."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.trainer.bundle.tarballs import END, GNU, long_name, member, mutated, pax
from trainer import content
from trainer.bundle import manifest, verify
from trainer.bundle.reader import Caps, Member
from trainer.errors import InputError

FILES = {"README": b"one", "trainer/a.py": b"two" * 400, "trainer/" + "n" * 120: b""}
COMMIT = "0123456789" * 4


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def listing(files: dict[str, bytes], algorithm: str = "sha256") -> bytes:
    return manifest.render({name: hashlib.new(algorithm, data).hexdigest() for name, data in files.items()})


def tar_of(files: dict[str, bytes]) -> bytes:
    """A tar as the project writes it."""
    found = pax({"comment": COMMIT}, b"g")
    for name, data in files.items():
        raw = name.encode()
        found += (pax({"path": name}) if len(raw) > 100 else b"") + member(
            raw[:100], data, mode=b"0000755\0" if name.endswith(".py") else b"0000644\0"
        )
    return found + END


class Folder:
    """A folder that a bundle was carried to."""

    def __init__(self, path: Path, name: str = "x.tar.gz") -> None:
        self.path, self.bundle = path, path / name
        self.outer = path / f"{name}.sha256"
        self.beside = path / "x.SYNC_MANIFEST.sha256"
        self.put(tar_of({**FILES, manifest.NAME: listing(FILES)}))

    def put(self, tar: bytes) -> None:
        """Another archive, with its sha256."""
        self.put_packed(gzip.compress(tar, 1, mtime=0))

    def put_packed(self, packed: bytes) -> None:
        self.bundle.write_bytes(packed)
        self.outer.write_text(f"{digest(packed)}  {self.bundle.name}\n")

    def check(
        self, target: verify.Target | None = None, caps: Caps | None = None, without: bool = False
    ) -> verify.Verified:
        return verify.check(self.bundle, without_sha256=without, caps=caps or Caps(), target=target or verify.Hashed())

    def refused(self, words: str, **options: bool) -> InputError:
        """The refusal, which has these words."""
        with pytest.raises(InputError, match=words) as refusal:
            self.check(**options)
        assert "\n" not in str(refusal.value)
        return refusal.value


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def entries(files: dict[str, bytes]) -> list[content.Entry]:
    return sorted((name, name.endswith(".py"), digest(data)) for name, data in files.items())


def test_a_bundle_of_ours_is_verified(folder: Folder) -> None:
    found = folder.check()
    assert found.name == "x.tar.gz" and found.sha256 == digest(folder.bundle.read_bytes()) and found.has_outer
    assert found.algorithm == "sha256" and found.commit == COMMIT and found.made_at == 5 and found.lines == []
    tree = {**FILES, manifest.NAME: listing(FILES)}
    assert found.entries == entries(tree)
    assert found.unpacked_bytes == sum(map(len, tree.values()))


def test_the_entries_are_those_of_the_unpacked_tree(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    subprocess.run(["tar", "-xzf", folder.bundle, "-C", tmp_path / "tree"], check=True)
    found = folder.check().entries
    assert content.verify(tmp_path / "tree", content.source_id(found)) == content.source_id(found)
    checked = subprocess.run(["sha256sum", "-c", "--strict", manifest.NAME], cwd=tmp_path / "tree", capture_output=True)
    assert checked.returncode == 0


@pytest.mark.parametrize(("tool", "algorithm"), [("sha256sum", "sha256"), ("sha1sum", "sha1"), ("shasum", "sha1")])
def test_a_bundle_of_the_old_scripts_is_verified(folder: Folder, tmp_path: Path, tool: str, algorithm: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    tree = tmp_path / "tree"
    (tree / "trainer").mkdir(parents=True)
    (tree / "empty").mkdir(mode=0o2775)
    for name, data in FILES.items():
        (tree / name).write_bytes(data)
        os.utime(tree / name, (1000, 1000))
    command = f"find . -type f ! -name SYNC_MANIFEST.txt -print0 | xargs -0 {tool} > SYNC_MANIFEST.txt"
    subprocess.run(["sh", "-c", command], cwd=tree, check=True)
    os.utime(tree / "SYNC_MANIFEST.txt", (2000, 2000))
    subprocess.run(["tar", "--format=gnu", "-czf", folder.bundle, "."], cwd=tree, check=True)
    with folder.outer.open("w") as stream:
        subprocess.run(["sha256sum", "./x.tar.gz"], cwd=tmp_path, check=True, stdout=stream)
    found = folder.check()
    assert found.algorithm == algorithm and found.made_at == 2000 and found.commit == ""
    names = [(name, sha256) for name, _, sha256 in found.entries if name != manifest.OLD_NAME]
    assert names == sorted((name, digest(data)) for name, data in FILES.items())
    assert [("sha1" in line) for line in found.lines] == [True] * (algorithm == "sha1")


def test_only_a_file_with_the_name_of_a_bundle_is_one(tmp_path: Path) -> None:
    for name in ("x.tar", "x.gz", "x.TAR.GZ", ".tar.gz", "x.tar.gz.part", "x.zip"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        odd = Folder(tmp_path / "sub", name)
        odd.refused("is no bundle by its name")
    assert Folder(tmp_path / "sub", "x.tgz").check().name == "x.tgz"


def test_the_bundle_is_a_regular_file(folder: Folder, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere"
    folder.bundle.rename(real)
    folder.refused("there is no file 'x.tar.gz'")
    folder.bundle.symlink_to(real)
    assert folder.check().name == "x.tar.gz"
    for make in (folder.bundle.mkdir, lambda: os.mkfifo(folder.bundle), lambda: folder.bundle.symlink_to("/dev/zero")):
        folder.bundle.unlink()
        make()
        folder.refused("'x.tar.gz' is no regular file")
        if folder.bundle.is_dir():
            folder.bundle.rmdir()
            folder.bundle.touch()


def test_the_outer_sha256_is_that_of_this_very_file(folder: Folder) -> None:
    packed = folder.bundle.read_bytes()
    folder.bundle.write_bytes(packed[:-1] + b"x")
    refusal = folder.refused("the sha256 of 'x.tar.gz' is")
    assert digest(packed) in str(refusal) and digest(packed[:-1] + b"x") in str(refusal)
    folder.bundle.write_bytes(packed)
    folder.outer.write_text(f"{digest(packed)}  y.tar.gz\n")
    folder.refused("it names 'y.tar.gz', not 'x.tar.gz'")
    folder.outer.write_text(f"{digest(packed)} *x.tar.gz\n")
    folder.check()
    folder.outer.write_text(f"{digest(packed)}  x.tar.gz\n" + "#" * 5000)
    folder.refused("more than 4096 bytes")


def test_an_outer_sha256_is_a_regular_file(folder: Folder) -> None:
    kept = folder.outer.read_text()
    for make in (folder.outer.mkdir, lambda: os.mkfifo(folder.outer), lambda: folder.outer.symlink_to("nowhere")):
        folder.outer.unlink()
        make()
        for without in (False, True):
            folder.refused("x.tar.gz.sha256", without=without)
        if folder.outer.is_dir():
            folder.outer.rmdir()
            folder.outer.touch()
    folder.outer.unlink()
    folder.outer.write_text(kept)
    folder.check()


def test_without_an_outer_sha256_the_user_says_so(folder: Folder) -> None:
    folder.outer.unlink()
    folder.refused("there is no 'x.tar.gz.sha256' beside the bundle; .*--without-sha256")
    found = folder.check(without=True)
    assert not found.has_outer and [("only the manifest inside" in line) for line in found.lines] == [True]
    folder.outer.write_text("garbage\n")
    folder.refused("x.tar.gz.sha256' line 1", without=True)


def test_a_bad_manifest_is_an_error_and_never_a_fall_back(folder: Folder) -> None:
    old = {**FILES, manifest.OLD_NAME: listing(FILES)}
    folder.put(tar_of(old))
    assert folder.check().entries == entries(old)
    bad = {
        b"garbage\n": "SYNC_MANIFEST.sha256 in 'x.tar.gz' line 1: 'garbage'",
        b"": "the file is empty",
        listing(old, "sha1"): "line 1: 40 hex digits, where sha256 has 64",
        listing(FILES): "does not list \\('SYNC_MANIFEST.txt'\\)",
    }
    for data, words in bad.items():
        folder.put(tar_of({**old, manifest.NAME: data}))
        folder.refused(words)
    folder.put(tar_of({**old, manifest.NAME: listing(old)}))
    assert folder.check().algorithm == "sha256"
    folder.put(tar_of(old))
    for data, words in bad.items():
        folder.beside.write_bytes(data)
        folder.refused(words.replace("SYNC_MANIFEST.sha256 in 'x.tar.gz'", "'x.SYNC_MANIFEST.sha256'"))
    folder.beside.write_bytes(listing(old))
    assert folder.check().entries == entries(old)


def test_the_manifest_beside_is_the_one_inside(folder: Folder) -> None:
    folder.beside.write_bytes(listing(FILES))
    folder.check()
    folder.beside.write_bytes(listing(FILES).replace(b"  ", b" *"))
    folder.refused("'x.SYNC_MANIFEST.sha256' is not equal to SYNC_MANIFEST.sha256 in 'x.tar.gz'")
    folder.put(tar_of(FILES))
    assert folder.check().entries == entries(FILES)  # the listing is as strict, and in binary mode
    folder.beside.unlink()
    folder.refused("'x.tar.gz' has neither SYNC_MANIFEST.sha256 nor SYNC_MANIFEST.txt at its top")
    folder.beside.with_name("x.sync_manifest.SHA256").write_bytes(listing(FILES))
    folder.refused("'x.sync_manifest.SHA256' lies beside 'x.tar.gz'")
    folder.beside.symlink_to("nowhere")
    folder.refused("there is no file 'x.SYNC_MANIFEST.sha256'")


def test_what_looks_like_the_manifest_is_an_error(folder: Folder) -> None:
    for name in ("sync_manifest.sha256", "SYNC_MANIFEST.SHA256", "SYNC_MANIFEST.sha256/a", "SYNC_MANIFEST.ſha256"):
        files = {**FILES, name: b"1"}
        folder.put(tar_of({**files, manifest.OLD_NAME: listing(files)}))
        folder.refused("the manifest is a file SYNC_MANIFEST.sha256")
    folder.put(tar_of(FILES)[:-1024] + member(b"SYNC_MANIFEST.sha256/", kind=b"5") + END)
    folder.refused("the manifest is a file SYNC_MANIFEST.sha256")
    files = {**FILES, "a/sync_manifest.sha256": b"1"}
    folder.put(tar_of({**files, manifest.OLD_NAME: listing(files)}))
    folder.check()


def test_the_manifest_and_the_tree_are_equal_both_ways(folder: Folder) -> None:
    for changed, words in (
        ({**FILES, "more": b""}, "has files that its manifest does not list \\('more'\\)"),
        ({"README": b"one"}, "lacks files that its manifest lists \\('trainer/a.py', 'trainer/nnn"),
        ({**FILES, "README": b"One"}, "has files that are not what its manifest says \\('README'\\)"),
        ({**FILES, **{f"f{i}": b"" for i in range(5)}}, "\\('f0', 'f1', 'f2' and 2 more\\)"),
    ):
        folder.put(tar_of({**changed, manifest.NAME: listing(FILES)}))
        folder.refused(words)
        folder.put(tar_of({**changed, manifest.NAME: listing(changed)}))
        folder.check()
    folder.put(tar_of({"README": b"two", "more": b"", manifest.NAME: listing(FILES)}))
    refusal = folder.refused("lacks files")
    assert ["does not list ('more')" in line for line in refusal.lines] == [True, False]
    folder.put(tar_of({**FILES, manifest.NAME: listing({**FILES, manifest.NAME: b""})}))
    folder.refused("the manifest lists itself")


class Changing(verify.Hashed):
    """A target that does something while it takes a file."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self._act = act

    def file(self, found: Member, pieces: Iterator[bytes]) -> None:
        self._act()
        super().file(found, pieces)


def test_a_bundle_that_changes_while_it_is_read_is_refused(folder: Folder) -> None:
    data = os.urandom(3 << 20)
    files = {**FILES, "data.bin": data}
    folder.put(tar_of({**files, manifest.NAME: listing(files)}))
    assert folder.check(Changing(lambda: None)).entries == entries({**files, manifest.NAME: listing(files)})
    later = gzip.compress(tar_of({**files, manifest.NAME: listing(files)}), 9, mtime=7)
    with pytest.raises(InputError, match="changed while it was read"):
        folder.check(Changing(lambda: folder.bundle.write_bytes(later)))


def test_a_byte_that_changes_nothing_but_the_hash_is_noticed(folder: Folder) -> None:
    """Between the two readings another operating system appears in gzip's header: the archive is still whole."""
    packed = folder.bundle.read_bytes()

    def act(done: int, total: int) -> None:
        if done == len(packed):
            folder.bundle.write_bytes(packed[:9] + b"\x07" + packed[10:])

    with pytest.raises(InputError, match="changed while it was read"):
        verify.check(folder.bundle, without_sha256=False, caps=Caps(), target=verify.Hashed(), progress=act)
    folder.put_packed(packed[:9] + b"\x07" + packed[10:])
    folder.check()


def test_what_lies_there_is_compared_and_not_what_was_sent(folder: Folder) -> None:
    class Damaged(verify.Hashed):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def digests(self, algorithm: str) -> dict[str, tuple[str, str]]:
            return {**super().digests(algorithm), self.name: ("0" * 64, "0" * 64)}

    for name in ("README", manifest.NAME):
        with pytest.raises(InputError, match=f"not what its manifest says .'{name}'"):
            folder.check(Damaged(name))
    with pytest.raises(InputError, match="does not list .'put there'"):
        folder.check(Damaged("put there"))


def test_the_caps_hold_for_manifests_too(folder: Folder) -> None:
    size = len(listing(FILES))
    folder.check(caps=Caps(manifest_bytes=size))
    with pytest.raises(InputError, match=f"SYNC_MANIFEST.sha256': {size} bytes, a manifest has at most {size - 1}"):
        folder.check(caps=Caps(manifest_bytes=size - 1))
    folder.put(tar_of(FILES))
    folder.beside.write_bytes(listing(FILES))
    folder.check(caps=Caps(manifest_bytes=size))
    with pytest.raises(InputError, match=f"more than {size - 1} bytes"):
        folder.check(caps=Caps(manifest_bytes=size - 1))


def test_progress_ends_with_all_of_both_readings(folder: Folder) -> None:
    seen: list[tuple[int, int]] = []
    verify.check(
        folder.bundle, without_sha256=False, caps=Caps(), target=verify.Hashed(),
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    size = folder.bundle.stat().st_size
    assert seen == sorted(seen) and seen[-1] == (2 * size, 2 * size)


LONG = b"d/" + b"n" * 150
TREE = {"a": b"one" * 300, "d/é": b"2" * 512, LONG.decode(): b"3"}
TAR = (
    pax({"comment": COMMIT}, b"g") + member(b"a", TREE["a"]) + member(b"d/", kind=b"5")
    + pax({"path": "d/é", "mtime": "5.5"}) + member(b"d/e", TREE["d/é"])
    + long_name(LONG + b"\0") + member(LONG[:100], b"3", magic=GNU)
    + member(manifest.NAME.encode(), listing(TREE)) + END
)  # fmt: skip


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.data())
def test_a_changed_archive_is_refused_or_has_the_same_files(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever happens inside, also behind a right gzip CRC and sha256: the manifest lets the original tree through."""
    folder = Folder(tmp_path_factory.getbasetemp())
    changed = mutated(TAR, data.draw, data.draw(st.sampled_from([512, 512, 1, 20])))
    folder.put(changed)
    try:
        found = folder.check(caps=Caps(files=50, bytes=1 << 20, header_bytes=2048)).entries
    except InputError:
        assert changed != TAR
        return
    assert found == entries({**TREE, manifest.NAME: listing(TREE)})
