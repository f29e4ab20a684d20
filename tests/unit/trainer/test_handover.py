"""Files go from one side to the other by the commands of both."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.command_line import Call, answer_of
from tests.unit.trainer.road import Road
from trainer import handover


def test_collect_export_import_and_imported(
    call: Call, line: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = str(tmp_path / "home")
    assert answer_of(call("imported", "--output-dir", home, "--json")) == {"export_id": "", "lines": []}
    line.record_plan("sample", outcomes={})
    line.finish("sample")
    collected = answer_of(call("collect", "--json"))
    assert set(collected) == {"run", "export_id", "files", "bytes", "lines"}
    assert answer_of(call("collect", "--anew", "--json")) == collected
    piece = ("export", "--export-id", collected["export_id"], "--token", "01234567")
    sent = answer_of(call(*piece, "--files", "0-2", "--offset", "0", "--most-bytes", "10", "--json"))
    assert 0 < sent["bytes"] <= 30
    assert answer_of(call(*piece, "--end", "--json")) == {"lines": []}
    collected = answer_of(call("collect", "--json"))
    road = Road(line.layout)
    road.answer = lambda value: print(json.dumps({"answer": value}))  # type: ignore[attr-defined]
    monkeypatch.setattr(handover.courier, "Pipe", lambda: road)
    words = ["import", "--host-root", str(line.layout.root), "--export-id", collected["export_id"]]
    words += ["--output-dir", home, "--max-total-bytes", "1000000", "--max-file-bytes"]
    code, _, err = call(*words, "10")
    assert code == 7 and "more than 10 bytes; raise artifacts_max_file_bytes" in err[-1]
    received = answer_of(call(*words, "100000"))["answer"]
    assert received["export_id"] == collected["export_id"] and len(received["lines"]) == 3 and received["changed"]
    del received["changed"]
    assert answer_of(call("imported", "--output-dir", home, "--json")) == received


def test_source_pack_verify_and_publish(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, unpacked = tmp_path / "tree", tmp_path / "host" / "releases" / ".incoming-1"
    for folder in (tree, unpacked):
        folder.mkdir(parents=True)
        (folder / "a.py").write_text("print(1)\n")
    monkeypatch.setattr(handover.steps, "code_root", lambda: tree)
    packed = answer_of(call("source", "pack", "--output", str(tmp_path / "x.tar.gz"), "--json"))
    assert packed["files"] == 1 and (tmp_path / "x.tar.gz").is_file()
    expected, commit = packed["source_id"], "c" * 40
    assert answer_of(call("source", "hash", "--json")) == {**packed, "commit": ""}
    words = ("source", "verify", "--expect", expected, "--json")
    with contextlib.chdir(unpacked):
        assert answer_of(call(*words)) == {"source_id": expected, "commit": ""}
        (unpacked / "a.py").write_text("print(2)\n")
        code, _, err = call(*words)
        assert code == 2 and f"expected {expected}" in err[-1]
        (unpacked / "a.py").write_text("print(1)\n")
        publish = ("--project-root", str(tmp_path / "host"), "source", "publish", "--expect", expected)
        assert call(*publish, "--commit", commit)[:2] == (0, f"{expected}\n")
    with contextlib.chdir(tmp_path / "host" / "code"):
        assert answer_of(call(*words, "--commit", commit)) == {"source_id": expected, "commit": commit}
        code, _, err = call(*words, "--commit", "d" * 40)
        assert code == 2 and "is of commit cccc" in err[-1]
