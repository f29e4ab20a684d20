"""The embedded base: the same bytes for the same inputs, built once, whole or not at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainer import base, encoding
from trainer.errors import InputError


def quiet(text: str) -> None:
    """What the build says is of no interest here."""


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_two_builds_of_one_seed_have_the_same_bytes(
    tmp_path: Path, tiny_corpus: Path, tiny_recipe: Any, tiny_base: Path
) -> None:
    again = base.build(tmp_path, tiny_corpus, tiny_recipe, say=quiet)
    assert again.name == tiny_base.name
    assert weights(again) == weights(tiny_base)
    assert (again / "tokenizer.json").read_bytes() == (tiny_base / "tokenizer.json").read_bytes()


def test_another_seed_gives_other_weights_in_another_folder(
    tmp_path: Path, tiny_corpus: Path, tiny_recipe: Any, tiny_base: Path
) -> None:
    other = base.build(tmp_path, tiny_corpus, replace(tiny_recipe, seed=tiny_recipe.seed + 1), say=quiet)
    assert other.name != tiny_base.name
    assert weights(other) != weights(tiny_base)


def test_the_hash_follows_the_corpus_and_the_recipe(tmp_path: Path, tiny_corpus: Path, tiny_recipe: Any) -> None:
    copy = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, copy)
    same = base.input_hash(tiny_corpus, tiny_recipe)
    assert base.input_hash(copy, tiny_recipe) == same
    assert base.input_hash(copy, replace(tiny_recipe, steps=tiny_recipe.steps + 1)) != same
    (copy / "notes.log").write_text("no course text", encoding="utf-8")
    assert base.input_hash(copy, tiny_recipe) == same
    (copy / "more.txt").write_text("磁场", encoding="utf-8")
    assert base.input_hash(copy, tiny_recipe) != same


@pytest.fixture
def built(tmp_path: Path, tiny_base: Path) -> Path:
    """A models folder with a copy of the tiny base; returns the base's folder."""
    return Path(shutil.copytree(tiny_base, tmp_path / "models" / tiny_base.name))


def test_a_second_build_does_nothing(built: Path, tiny_corpus: Path, tiny_recipe: Any) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in built.iterdir()}
    said: list[str] = []
    assert base.build(built.parent, tiny_corpus, tiny_recipe, say=said.append) == built
    assert {path.name: path.stat().st_mtime_ns for path in built.iterdir()} == before
    assert said == [f"embedded base: up to date ({built.name})"]


def cut_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(weights(folder)[:-1])


def swap_a_byte(folder: Path) -> None:
    data = bytearray(weights(folder))
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        cut_weights,
        swap_a_byte,
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / "base.json").unlink(),
        lambda folder: (folder / "base.json").write_text('{"files": {', encoding="utf-8"),
        lambda folder: (folder / "base.json").write_text('{"files": {}}', encoding="utf-8"),
    ],
    ids=["cut", "swapped", "file gone", "unfinished", "torn record", "empty record"],
)
def test_a_damaged_base_is_built_anew(
    built: Path, tiny_base: Path, tiny_corpus: Path, tiny_recipe: Any, damage: Any
) -> None:
    assert base.is_complete(built)
    damage(built)
    assert not base.is_complete(built)
    assert base.build(built.parent, tiny_corpus, tiny_recipe, say=quiet) == built
    assert base.is_complete(built)
    assert weights(built) == weights(tiny_base)
    assert [path.name for path in built.parent.iterdir()] == [built.name]


def test_an_interrupted_build_leaves_nothing_under_the_final_name(
    tmp_path: Path, tiny_corpus: Path, tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(base, "pretrain", broken)
        with pytest.raises(KeyboardInterrupt):
            base.build(tmp_path, tiny_corpus, tiny_recipe, say=quiet)
    assert list(tmp_path.iterdir()) == []
    assert base.is_complete(base.build(tmp_path, tiny_corpus, tiny_recipe, say=quiet))


@pytest.mark.parametrize("content", [{}, {"notes.log": "x"}, {"course.md": ""}, {"course.md": " \n"}])
def test_without_a_course_text_one_sentence_says_what_to_do(
    tmp_path: Path, tiny_recipe: Any, content: dict[str, str]
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, text in content.items():
        (corpus / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        base.build(tmp_path / "models", corpus, tiny_recipe, say=quiet)
    assert str(caught.value) == f"no course text in {corpus}; put .md or .txt files there to build the embedded base"
    (corpus / "course.md").write_text("电场强度 E=F/q", encoding="utf-8")
    assert base.is_complete(base.build(tmp_path / "models", corpus, replace(tiny_recipe, steps=1), say=quiet))


def test_the_record_tells_what_was_built(tiny_base: Path, tiny_corpus: Path, tiny_recipe: Any) -> None:
    record = json.loads((tiny_base / "base.json").read_text(encoding="utf-8"))
    assert record["input_hash"] == base.input_hash(tiny_corpus, tiny_recipe)
    assert record["recipe"]["steps"] == tiny_recipe.steps
    assert "model.safetensors" in record["files"]
    assert not [path.name for path in tiny_base.iterdir() if path.suffix in (".bin", ".pt", ".pth")]
    assert base.location(tiny_base.parent, tiny_corpus, tiny_recipe) == tiny_base


@pytest.mark.parametrize(
    "text",
    [
        "导体内部的电场为零。",
        "$\\oint E\\cdot dS = q/\\varepsilon_0$",
        "∮E·dS=Q/ε₀，E→0（r→∞）",
        "### 检查（量纲与极限）\n  两个空格\t制表符\n",
        "罕见字：龘 😀",
    ],
)
def test_the_tokenizer_gives_back_every_text(tiny_tokenizer: Any, text: str) -> None:
    ids = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tiny_tokenizer.decode(ids) == text
    assert len(ids) < len(text.encode()) or text.startswith("罕见")


@pytest.mark.parametrize("enable_thinking", [False, True])
def test_the_templates_own_mask_is_what_encoding_trains(tiny_tokenizer: Any, enable_thinking: bool) -> None:
    messages = [
        {"role": "system", "content": "你是助教。"},
        {"role": "user", "content": "导体内部？"},
        {"role": "assistant", "content": "电场为零"},
    ]
    marked = tiny_tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, enable_thinking=enable_thinking
    )
    (example,) = encoding.encode_row({"id": "a", "messages": messages}, tiny_tokenizer, enable_thinking=enable_thinking)
    size = len(example.input_ids)
    assert marked["input_ids"][:size] == example.input_ids
    assert [label != encoding.IGNORED for label in example.labels] == [
        bool(m) for m in marked["assistant_masks"][:size]
    ]
    assert not any(marked["assistant_masks"][size:])  # the line break behind the stop token is never learned


def test_the_templates_mask_of_a_long_conversation_is_all_of_its_turns(tiny_tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": "导体内部？"},
        {"role": "assistant", "content": "电场为零"},
        {"role": "user", "content": "表面？"},
        {"role": "assistant", "content": "有电荷"},
    ]
    marked = tiny_tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    masked = [token for token, mask in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if mask]
    examples = encoding.encode_row({"id": "a", "messages": messages}, tiny_tokenizer, enable_thinking=True)
    assert masked == [label for example in examples for label in example.labels if label != encoding.IGNORED]
