"""sha256 of values and files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from trainer import digest


def test_the_hash_of_a_value_ignores_the_order_of_names_only() -> None:
    assert digest.of_value({"a": 1, "b": 2}) == digest.of_value({"b": 2, "a": 1})
    assert digest.of_value([1, 2]) != digest.of_value([2, 1])
    assert digest.of_value({"a": 1}) != digest.of_value({"a": "1"})


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    large = bytes(range(256)) * 5000  # more than one piece
    (tmp_path / "a").write_bytes(large)
    assert digest.of_file(tmp_path / "a") == hashlib.sha256(large).hexdigest()
