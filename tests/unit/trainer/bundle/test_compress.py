"""One gzip member from several threads."""

from __future__ import annotations

import gzip
import io
import random
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.bundle import compress
from trainer.bundle.compress import BLOCK_BYTES, GzipWriter


def packed(*pieces: bytes, threads: int = 2) -> bytes:
    stream = io.BytesIO()
    with GzipWriter(stream, threads) as writer:
        for piece in pieces:
            writer.write(piece)
    return stream.getvalue()


def content(size: int, seed: int = 1) -> bytes:
    """Bytes of which some parts get smaller and others do not."""
    source = random.Random(seed)
    parts = []
    while sum(map(len, parts)) < size:
        parts.append(source.randbytes(BLOCK_BYTES // 3) if source.random() < 0.5 else b"words and more " * 20_000)
    return b"".join(parts)[:size]


@pytest.mark.parametrize(
    "size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES, 5 * BLOCK_BYTES + 17]
)
def test_what_was_packed_comes_back(size: int, tmp_path: Path) -> None:
    data = content(size)
    found = packed(data)
    assert gzip.decompress(found) == data
    (tmp_path / "x.gz").write_bytes(found)
    assert subprocess.run(["gzip", "-dc", tmp_path / "x.gz"], check=True, capture_output=True).stdout == data
    subprocess.run(["gzip", "-t", tmp_path / "x.gz"], check=True)


def test_the_bytes_are_the_same_for_every_number_of_threads_and_however_they_came() -> None:
    data = content(6 * BLOCK_BYTES + 5)
    once = packed(data, threads=1)
    for threads in (2, 3, 8):
        assert packed(data, threads=threads) == once
    cuts = sorted(random.Random(2).sample(range(len(data)), 40))
    assert packed(*(data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True))) == once


@settings(max_examples=20, deadline=None)
@given(st.lists(st.binary(max_size=3000), max_size=5), st.integers(1, 4))
def test_any_pieces_come_back(pieces: list[bytes], threads: int) -> None:
    assert gzip.decompress(packed(*pieces, threads=threads)) == b"".join(pieces)


def test_the_header_says_nothing_of_this_machine() -> None:
    assert packed(b"x")[:10] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"


def test_text_gets_nearly_as_small_as_by_gzip_and_noise_hardly_larger() -> None:
    source = random.Random(3)
    words = [f"word{number}" for number in range(500)]
    text = " ".join(source.choice(words) for _ in range(400_000)).encode()
    assert len(packed(text)) < 1.06 * len(gzip.compress(text, 6))
    noise = source.randbytes(3 * BLOCK_BYTES)
    assert len(packed(noise)) < 1.001 * len(noise)


def test_a_block_that_gets_smaller_in_one_place_only_is_compressed() -> None:
    noise = random.Random(4).randbytes(BLOCK_BYTES // 2)
    assert len(packed(noise + bytes(BLOCK_BYTES // 2))) < 0.6 * BLOCK_BYTES


def test_blocks_use_what_stood_before_them() -> None:
    noise = random.Random(5).randbytes(16 << 10)
    block = noise * (2 * BLOCK_BYTES // len(noise))
    assert len(packed(block)) < 4 * len(noise)


def test_memory_is_bounded_when_the_threads_are_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, fed = threading.Event(), []

    def wait(block: bytes, before: bytes, last: bool) -> bytes:
        gate.wait(60)
        return b""

    def feed() -> None:
        with GzipWriter(io.BytesIO(), 2) as writer:
            for number in range(40):
                writer.write(bytes(BLOCK_BYTES))
                fed.append(number)

    monkeypatch.setattr(compress, "deflate", wait)
    feeder = threading.Thread(target=feed)
    feeder.start()
    feeder.join(1.0)
    try:
        assert feeder.is_alive() and 0 < len(fed) < 10
    finally:
        gate.set()
        feeder.join()
    assert len(fed) == 40


def test_a_disk_that_refuses_ends_it_and_its_threads() -> None:
    class Full(io.RawIOBase):
        def write(self, data: object) -> int:
            if len(bytes(data)) != 10:  # type: ignore[call-overload]
                raise OSError(28, "No space left on device")
            return 10

    before = threading.active_count()
    with pytest.raises(OSError, match="No space"), GzipWriter(Full(), 2) as writer:
        for _ in range(40):
            writer.write(bytes(BLOCK_BYTES))
    assert threading.active_count() == before


def test_an_exception_leaves_a_member_that_nobody_accepts() -> None:
    stream = io.BytesIO()
    with pytest.raises(KeyError), GzipWriter(stream) as writer:
        writer.write(b"x" * 100)
        raise KeyError
    with pytest.raises(EOFError):
        gzip.decompress(stream.getvalue())


def test_pigz_reads_it_where_it_is_installed(tmp_path: Path) -> None:
    if not shutil.which("pigz"):
        pytest.skip("pigz is not installed")
    (tmp_path / "x.gz").write_bytes(packed(content(3 * BLOCK_BYTES)))
    subprocess.run(["pigz", "-t", tmp_path / "x.gz"], check=True)


def test_the_cores_of_this_process_are_counted() -> None:
    assert compress.available_cores() >= 1
