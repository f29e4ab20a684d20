"""What a stage leaves behind."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest

from trainer import results
from trainer.errors import TrainingFailed


def test_an_adapter_that_was_not_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(TrainingFailed, match="the adapter of stage style was not written"):
        results.adapter_hash(tmp_path, "style")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    assert len(results.adapter_hash(tmp_path, "style")) == 64


def test_versions_name_what_is_installed_and_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "PACKAGES", ("torch", "no-such-library"))
    assert results.versions() == {"torch": metadata.version("torch"), "no-such-library": None}


def test_json_for_people_keeps_their_letters(tmp_path: Path) -> None:
    results.write_plain_json(tmp_path / "a.json", {"stage": "样例"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "样例" in text and text.endswith("\n") and json.loads(text) == {"stage": "样例"}
