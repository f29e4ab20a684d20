"""Tokenised rows on disk: the same examples as in memory, whole or not there, made once."""

from __future__ import annotations

import copy
import errno
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import chat, write_rows
from trainer import digest, encoding, lines, tokenised
from trainer.errors import HostUnfit, InputError, TrainingFailed

FILE = "training/rows.jsonl"


def rows(count: int) -> list[dict[str, Any]]:
    """Rows of varied length; every third has two answers."""
    found = []
    for number in range(count):
        row = chat(f"r-{number}", f"第 {number} 题？", "电场为零，" * (1 + number % 7))
        if number % 3 == 0:
            row["messages"] += chat("", "表面？", "有电荷")["messages"]
        found.append(row)
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_rows(tmp_path / "rows.jsonl", rows(30))
    return tmp_path / "rows.jsonl"


def of_file(path: Path, tokenizer: Any, cache: Path, **more: Any) -> tokenised.Tokenised:
    options = {"enable_thinking": False, "processes": 1, **more}
    return tokenised.of_file(path, FILE, digest.of_file(path), "style", tokenizer, cache, **options)


def in_memory(path: Path, tokenizer: Any, max_length: int) -> tuple[list[encoding.Example], list[lines.Finding]]:
    return encoding.encode(lines.Lines(path), tokenizer, FILE, enable_thinking=False, max_length=max_length)


def folders(cache: Path) -> list[Path]:
    return [folder for folder in [*cache.glob("examples-*"), *cache.glob(".examples-*")] if folder.is_dir()]


@pytest.mark.parametrize("processes", [1, 2])
def test_examples_are_those_in_memory_in_the_same_order(
    path: Path, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(tokenised, "BLOCK_ROWS", 4)
    found = of_file(path, tiny_tokenizer, tmp_path / "cache", processes=processes)
    wanted, _ = in_memory(path, tiny_tokenizer, 512)
    assert len(found.dataset) == len(wanted) == 40
    for mapped, held in zip(found.dataset, wanted, strict=True):
        assert (mapped["row_id"], mapped["turn"]) == (held.row_id, held.turn)
        assert (mapped["input_ids"], mapped["labels"]) == (held.input_ids, held.labels)
        assert (mapped["length"], mapped["trained_tokens"]) == (len(held.input_ids), held.trained_tokens)
    assert str(found.dataset.features["input_ids"].feature.dtype) == "int32"


def test_the_same_faults_are_found_as_in_memory(tiny_tokenizer: Any, tmp_path: Path) -> None:
    strict = copy.deepcopy(tiny_tokenizer)
    refuse = "{{ raise_exception('no tool here') if messages[-1].content == 'tool' }}"
    strict.chat_template = refuse + strict.chat_template
    faulty = rows(12)
    faulty[4] = chat("silent", "问？", "")
    faulty[7] = chat("refused", "问？", "tool")
    faulty[9] = chat("long", "问？", "电场为零，" * 60)
    path = tmp_path / "rows.jsonl"
    write_rows(path, faulty)
    found = of_file(path, strict, tmp_path / "cache")
    for limit in (40, 150, 2000):
        assert found.faults(FILE, limit) == in_memory(path, strict, limit)[1]
    assert [item.line for item in found.faults(FILE, 150)] == [5, 8, 10]
    assert [item.line for item in found.faults(FILE, 2000)] == [5, 8]


def test_many_faults_are_told_in_part_and_counted(tiny_tokenizer: Any, path: Path, tmp_path: Path) -> None:
    write_rows(path, rows(lines.SHOWN + 3))
    found = of_file(path, tiny_tokenizer, tmp_path / "cache").faults(FILE, 16)
    assert len(found) == lines.SHOWN + 1
    assert sum(item.count for item in found) == len(in_memory(path, tiny_tokenizer, 512)[0])
    assert found == in_memory(path, tiny_tokenizer, 16)[1]


@pytest.fixture
def no_more(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it, and nothing can be tokenised any more."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("rows were tokenised again")

    return lambda: monkeypatch.setattr(tokenised, "encode_block", refuse)


def test_what_was_made_is_taken_again(path: Path, tiny_tokenizer: Any, tmp_path: Path, no_more: Any) -> None:
    first = of_file(path, tiny_tokenizer, tmp_path)
    no_more()
    again = of_file(path, tiny_tokenizer, tmp_path)
    assert again.dataset[:] == first.dataset[:]
    with pytest.raises(AssertionError, match="tokenised again"):
        of_file(path, tiny_tokenizer, tmp_path, enable_thinking=True)


def other_template(tokenizer: Any) -> Any:
    found = copy.deepcopy(tokenizer)
    found.chat_template += " "
    return found


def other_vocabulary(tokenizer: Any) -> Any:
    found = copy.deepcopy(tokenizer)
    found.add_tokens(["电场"])
    return found


@pytest.mark.parametrize("changed", [other_template, other_vocabulary])
def test_another_tokenizer_makes_its_own_and_the_old_one_goes(
    path: Path, tiny_tokenizer: Any, tmp_path: Path, changed: Any
) -> None:
    of_file(path, tiny_tokenizer, tmp_path / "cache")
    (old,) = folders(tmp_path / "cache")
    (tmp_path / "cache" / ".examples-style-killed.1").mkdir()
    other = changed(tiny_tokenizer)
    found = of_file(path, other, tmp_path / "cache")
    (new,) = folders(tmp_path / "cache")
    assert new != old and found.dataset[0]["input_ids"] == in_memory(path, other, 512)[0][0].input_ids


@pytest.mark.parametrize("damage", ["byte", "end", "manifest"])
def test_what_is_damaged_is_made_anew(path: Path, tiny_tokenizer: Any, tmp_path: Path, damage: str) -> None:
    whole = of_file(path, tiny_tokenizer, tmp_path / "cache").dataset[:]
    (folder,) = folders(tmp_path / "cache")
    examples = folder / tokenised.EXAMPLES
    content = examples.read_bytes()
    if damage == "manifest":
        (folder / tokenised.MANIFEST).unlink()
    else:
        examples.write_bytes(content[:-9] if damage == "end" else content[:500] + b"\xff" + content[501:])
    assert of_file(path, tiny_tokenizer, tmp_path / "cache").dataset[:] == whole
    assert examples.read_bytes() == content


def test_a_file_that_is_another_one_by_now_is_refused(path: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    sha256 = digest.of_file(path)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(chat("late", "问？", "答")) + "\n")
    with pytest.raises(InputError, match=f"{FILE} changed while it was read"):
        tokenised.of_file(path, FILE, sha256, "style", tiny_tokenizer, tmp_path / "cache", enable_thinking=False)
    assert folders(tmp_path / "cache") == []


def test_a_full_disk_is_one_sentence_and_keeps_what_was_there(
    path: Path, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_file(path, tiny_tokenizer, tmp_path / "cache")
    kept = folders(tmp_path / "cache")

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tokenised, "sync_file", full)
    with pytest.raises(HostUnfit, match="No space left on device, [0-9]+ MiB free.*make room there") as caught:
        of_file(path, other_template(tiny_tokenizer), tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert folders(tmp_path / "cache") == kept


def ended(_: Any) -> Any:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def test_a_helper_that_is_killed_is_one_sentence(
    path: Path, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenised, "encode_block", ended)
    with pytest.raises(TrainingFailed, match="a process that tokenises rows was ended"):
        of_file(path, tiny_tokenizer, tmp_path / "cache", processes=2)
    assert folders(tmp_path / "cache") == []


def test_more_processes_are_started_only_where_they_pay(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tokenised.processes_for(path) == 1
    monkeypatch.setattr(tokenised, "BYTES_FOR_PROCESS", path.stat().st_size // 3)
    for cores, wanted in ((2, 1), (4, 2)):
        monkeypatch.setattr(tokenised.os, "sched_getaffinity", lambda _, cores=cores: range(cores))
        assert tokenised.processes_for(path) == wanted
    monkeypatch.setattr(tokenised.os, "sched_getaffinity", lambda _: range(64))
    assert tokenised.processes_for(path) == 3
