"""The 4-bit copy of a base: bit-equal to quantising again, used only when it is whole, never a reason to fail."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.trainer.interrupted import Server
from trainer import encoding, generate, model, prepared, train
from trainer.base import build
from trainer.resident import COPY, Resident
from trainer.state import Layout


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path, tiny_recipe: Any) -> Path:
    """A base whose rows are whole blocks of nf4 (64 weights), as those of real models are."""
    recipe = replace(tiny_recipe, hidden_size=64, steps=2)
    return build(tmp_path_factory.mktemp("models"), tiny_corpus, recipe, say=lambda text: None)


@pytest.fixture
def parameters(wide_base: Path, tiny_parameters: Any) -> Callable[..., Any]:
    return lambda **changes: tiny_parameters(**{"model_name_or_path": str(wide_base), "use_qlora": True, **changes})


@pytest.fixture
def host(tmp_path: Path, tiny_corpus: Path) -> Any:
    """A host: `load` is a new worker that wants a base, `notes` what it said."""
    layout, notes = Layout(tmp_path / "host"), list[str]()

    def load(parameters: Any) -> model.Base:
        notes.clear()

        def report(event: str, **fields: Any) -> None:
            notes.extend([fields["text"]] if event == "note" else [])

        return Resident(layout, report).get(parameters, tiny_corpus)

    return SimpleNamespace(layout=layout, notes=notes, load=load, models=layout.models)


def copies_of(host: Any) -> list[Path]:
    """Everything below models that is or was to become a copy, hidden or not."""
    return sorted(path for path in host.models.glob("*prepared-*") if path.is_dir())


def tensors(of: model.Base) -> dict[str, torch.Tensor]:
    """Every bit of a base: weights, quantised weights and their states, buffers that are not saved as well."""
    found = {**of.model.state_dict(), **dict(of.model.named_buffers())}
    for name, layer in of.model.named_modules():
        if quant_state := getattr(getattr(layer, "weight", None), "quant_state", None):
            found |= {f"{name}.state.{key}": value for key, value in quant_state.as_dict(packed=True).items()}
    return found


def assert_same_bits(one: model.Base, other: model.Base) -> None:
    first, second = tensors(one), tensors(other)
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert (tensor.dtype, tensor.shape) == (second[name].dtype, second[name].shape), name
        assert torch.equal(tensor, second[name]), name


def trained(base: model.Base, parameters: Any, rows: list[Any], folder: Path) -> tuple[bytes, bytes, list[Any]]:
    """The adapter of a short training, its configuration, and the answers that it gives."""
    examples, _ = encoding.encode(
        list(enumerate(rows, 1)), base.tokenizer, "rows", enable_thinking=False, max_length=256
    )
    adapted = model.attach_adapter(base, parameters)
    train.train(adapted, base, examples, parameters, folder / "train", lambda *_, **__: None)
    adapted.save_pretrained(str(folder), safe_serialization=True)
    questions = [{"id": row["id"], "query": row["messages"][0]["content"]} for row in rows]
    found = generate.answer(adapted, base.tokenizer, questions, parameters, lambda *_: None)
    files = [(folder / name).read_bytes() for name in ("adapter_model.safetensors", "adapter_config.json")]
    return files[0], files[1], found.predictions


def test_the_copy_is_bit_equal_and_so_is_all_that_is_made_on_it(
    host: Any, parameters: Any, tiny_rows: Any, tmp_path: Path
) -> None:
    asked = parameters(max_steps=6, lora_dropout=0.1)
    alone = model.load_base(asked.model_name_or_path, asked)  # as on a host that never prepares anything
    first = host.load(asked)
    assert first.choices[COPY].value == "made"
    assert [note.split(" in ")[0] for note in host.notes] == ["base: nf4 copy prepared"]
    (copy,) = copies_of(host)
    second = host.load(asked)
    assert host.notes == [] and second.choices[COPY].value == "read" and copy.name in second.choices[COPY].reason
    assert second.model.hf_quantizer.pre_quantized and not first.model.hf_quantizer.pre_quantized
    for base in (first, second):
        assert_same_bits(alone, base)
        assert base.source == base.model.name_or_path == asked.model_name_or_path
        assert base.model.config.to_dict() == alone.model.config.to_dict()
        assert str(base.model.config.dtype) == "torch.float32" == str(alone.model.config.dtype)
    results = [
        trained(base, asked, tiny_rows, tmp_path / str(number)) for number, base in enumerate((alone, first, second))
    ]
    assert results[0] == results[1] == results[2]
    assert any(prediction["response"] for prediction in results[0][2])


def test_a_copy_of_several_files_is_read_as_well(host: Any, parameters: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "SHARD", "60KB")
    first = host.load(parameters())
    (copy,) = copies_of(host)
    assert len(list(copy.glob("*.safetensors"))) > 1
    second = host.load(parameters())
    assert second.choices[COPY].value == "read"
    assert_same_bits(first, second)


def test_a_base_of_all_bits_needs_no_copy(host: Any, parameters: Any) -> None:
    base = host.load(parameters(use_qlora=False))
    assert COPY not in base.choices and copies_of(host) == [] and not base.quantised


def test_the_copy_is_read_by_hash_once_and_known_by_its_times_from_then_on(
    host: Any, parameters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.load(parameters())
    (copy,) = copies_of(host)
    read: list[str] = []
    original = prepared.digest.of_file

    def noted(path: Path) -> str:
        read.extend([path.name] if path.parent == copy else [])
        return original(path)

    monkeypatch.setattr(prepared.digest, "of_file", noted)
    host.load(parameters())
    assert sorted(read) == ["config.json", "generation_config.json", "model.safetensors"]
    host.load(parameters())
    assert len(read) == 3
    os.utime(copy / "config.json")
    host.load(parameters())
    assert len(read) == 6 and copies_of(host) == [copy]


def flip(copy: Path) -> str:
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    return "model.safetensors is damaged"


def flip_unseen(copy: Path) -> str:
    """A size and a time of change that stay the same do not hide it: the inode's own time moves on."""
    before = (copy / "model.safetensors").stat()
    words = flip(copy)
    os.utime(copy / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    return words


def lose(copy: Path) -> str:
    (copy / "config.json").unlink()
    return "config.json is missing"


def lose_weights(copy: Path) -> str:
    (copy / "model.safetensors").unlink()
    return "model.safetensors is missing"


def cut(copy: Path) -> str:
    os.truncate(copy / "model.safetensors", 1000)
    return "model.safetensors is damaged"


def unfinish(copy: Path) -> str:
    (copy / "manifest.json").unlink()
    return "it has no manifest.json, so it was never finished"


def garble(copy: Path) -> str:
    (copy / "manifest.json").write_text('{"files": {', encoding="utf-8")
    return "its manifest.json cannot be read"


def empty(copy: Path) -> str:
    (copy / "manifest.json").write_text("{}", encoding="utf-8")
    return "its manifest.json cannot be read"


def add(copy: Path) -> str:
    (copy / "adapter_config.json").write_text("{}", encoding="utf-8")
    return "adapter_config.json is not one of its files"


def link(copy: Path) -> str:
    shutil.copy(copy / "model.safetensors", copy.parent / "elsewhere")
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").symlink_to(copy.parent / "elsewhere")
    return "model.safetensors is damaged"


def other(name: str) -> Callable[[Path], str]:
    """The copy of another base or of other settings under this one's name."""

    def change(copy: Path) -> str:
        manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
        manifest["inputs"][name] = {"bnb_4bit_quant_type": "fp4"} if name == "settings" else "another"
        (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        return f"it was made of another base or with other settings ({name} differs)"

    return change


@pytest.mark.parametrize(
    ("damage", "seen"),
    [*[(damage, True) for damage in (flip, flip_unseen, lose, cut, unfinish, add, link, other("base"))],
     *[(damage, False) for damage in (flip, lose_weights, garble, empty, other("settings"), other("dtype"))]],
)  # fmt: skip
def test_a_damaged_copy_is_named_never_used_and_made_anew(
    host: Any, parameters: Any, damage: Callable[[Path], str], seen: bool
) -> None:
    first = host.load(parameters())
    (copy,) = copies_of(host)
    if seen:
        assert host.load(parameters()).choices.value(COPY) == "read"
    words = damage(copy)
    again = host.load(parameters())
    assert host.notes[0] == f"base: the nf4 copy {copy.name} is not used: {words}"
    assert host.notes[1].startswith("base: nf4 copy prepared in ")
    assert again.choices.value(COPY) == "made" and not again.model.hf_quantizer.pre_quantized
    assert_same_bits(first, again)
    assert copies_of(host) == [copy], "the damaged one is gone when the new one is complete"
    last = host.load(parameters())
    assert host.notes == [] and last.choices.value(COPY) == "read"
    assert_same_bits(first, last)


def test_a_damaged_copy_stays_until_the_new_one_is_complete(
    host: Any, parameters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.load(parameters())
    (copy,) = copies_of(host)
    flip(copy)
    damaged = {path.name: path.read_bytes() for path in copy.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(prepared.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        base = host.load(parameters())
    assert base.choices.value(COPY) == "none" and "is not used" in host.notes[0] and len(host.notes) == 2
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == damaged
    assert host.load(parameters()).choices.value(COPY) == "made"


def test_other_bases_and_settings_have_copies_of_their_own(
    host: Any, parameters: Any, wide_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.load(parameters())
    assert host.load(parameters(lora_r=2, learning_rate=0.1)).choices.value(COPY) == "read"
    assert host.load(parameters(compute_dtype="bfloat16")).choices.value(COPY) == "made"
    revision = Path(shutil.copytree(wide_base, tmp_path / "revision"))
    weights = load_file(revision / "model.safetensors")
    for tensor in weights.values():
        tensor.mul_(1.5)
    from safetensors.torch import save_file

    save_file(weights, revision / "model.safetensors", metadata={"format": "pt"})
    assert host.load(parameters(model_name_or_path=str(revision))).choices.value(COPY) == "made"
    assert len(copies_of(host)) == 3, "and none of them is deleted"
    assert not any("other nf4 copies" in note for note in host.notes)
    monkeypatch.setattr(prepared, "OLD_BYTES", 1000)
    monkeypatch.setattr(prepared, "FORMAT", prepared.FORMAT + 1)
    before = copies_of(host)
    host.load(parameters())
    assert "base: other nf4 copies take " in host.notes[-1]
    assert all(path.name in host.notes[-1] for path in before) and set(before) < set(copies_of(host))


def test_the_same_content_elsewhere_is_the_same_copy(
    host: Any, parameters: Any, wide_base: Path, tmp_path: Path
) -> None:
    host.load(parameters())
    moved = Path(shutil.copytree(wide_base, tmp_path / "moved"))
    base = host.load(parameters(model_name_or_path=str(moved)))
    assert base.choices.value(COPY) == "read" and base.model.name_or_path == base.source == str(moved)


def test_a_disk_without_room_is_a_note_only(host: Any, parameters: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = model.load_base(parameters().model_name_or_path, parameters()).model.get_memory_footprint()
    enough = 2 * needed + prepared.SPARE_BYTES
    monkeypatch.setattr(prepared.shutil, "disk_usage", lambda path: SimpleNamespace(free=enough - 1))
    base = host.load(parameters())
    assert base.quantised and base.choices.value(COPY) == "none" and copies_of(host) == []
    assert len(host.notes) == 1 and host.notes[0].startswith("base: no nf4 copy is prepared: it takes ")
    monkeypatch.setattr(prepared.shutil, "disk_usage", lambda path: SimpleNamespace(free=enough))
    assert host.load(parameters()).choices.value(COPY) == "made"


@pytest.mark.parametrize(
    ("failing", "last"), [("sync_file", False), ("sync_folder", False), ("sync_folder", True), ("write_json", False)]
)
def test_a_disk_that_fails_while_the_copy_is_written_is_a_note_only(
    host: Any, parameters: Any, failing: str, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(prepared.state, failing)

    def full(path: Path, *words: Any) -> None:
        if path == host.models if last else "prepared-" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        original(path, *words)

    with monkeypatch.context() as patch:
        patch.setattr(prepared.state, failing, full)
        base = host.load(parameters())
    assert base.quantised and base.choices.value(COPY) == "none"
    assert "No space left on device" in host.notes[0] and len(host.notes) == 1 and "\n" not in host.notes[0]
    assert all((path / prepared.MANIFEST).is_file() for path in copies_of(host)), "whole or not there"
    assert host.load(parameters()).choices.value(COPY) == ("read" if last else "made")


@pytest.mark.parametrize("content", ["not JSON", '{"schema": 99}', '{"schema": 1}'])
def test_what_is_remembered_of_a_copy_may_be_lost(host: Any, parameters: Any, content: str) -> None:
    host.load(parameters())
    host.load(parameters())
    (memory,) = host.layout.cache.glob("prepared-*.json")
    memory.write_text(content, encoding="utf-8")
    assert host.load(parameters()).choices.value(COPY) == "read" and host.notes == []
    assert json.loads(memory.read_text(encoding="utf-8"))["stamp"]


def test_weights_that_do_not_fit_are_a_note_only(host: Any, parameters: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource
    import signal as signals

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signals.signal(signals.SIGXFSZ, signals.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # a file may not grow beyond it: EFBIG
        base = host.load(parameters())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signals.signal(signals.SIGXFSZ, before)
    assert base.choices.value(COPY) == "none" and copies_of(host) == []
    assert len(host.notes) == 1 and host.notes[0].startswith("base: no nf4 copy could be prepared (")
    assert host.load(parameters()).choices.value(COPY) == "made"


def load_killed(root: Path, parameters: Any, name: str, at: int) -> None:
    """A worker that is killed at the `at`-th call of a function of `state` for a copy."""
    original, calls = getattr(prepared.state, name), []

    def killing(path: Path, *words: Any) -> None:
        calls.append(path)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        original(path, *words)

    setattr(prepared.state, name, killing)
    inputs = prepared.inputs_of("base", model.NF4, "float32", "cpu")
    base = model.load_base(parameters.model_name_or_path, parameters)
    prepared.make(Layout(root), inputs, base.model, print)


@pytest.mark.parametrize(
    ("name", "at", "complete"),
    [("sync_file", 1, False), ("sync_file", 3, False), ("write_json", 1, False), ("sync_folder", 1, False),
     ("sync_folder", 2, True)],
)  # fmt: skip
def test_a_kill_while_it_is_made_leaves_nothing_that_counts(
    host: Any, parameters: Any, server: Server, name: str, at: int, complete: bool
) -> None:
    assert server.call(load_killed, host.layout.root, parameters(), name, at) == -signal.SIGKILL
    left = copies_of(host)
    assert [path.name.startswith(".") for path in left] == [not complete], "half a copy has a name nobody looks for"
    inputs = prepared.inputs_of("base", model.NF4, "float32", "cpu")
    found = prepared.find(host.layout, inputs, host.notes.append)
    assert host.notes == [] and (found is not None) == complete
    base = model.load_base(parameters().model_name_or_path, parameters())
    made = prepared.make(host.layout, inputs, base.model, host.notes.append)
    assert made == prepared.find(host.layout, inputs, host.notes.append)
    assert copies_of(host) == [made], "what was left is swept away"


@pytest.fixture(scope="module")
def server() -> Server:
    """Forks children that have imported everything."""
    return Server()


def test_two_that_make_it_at_once_do_not_meet(host: Any, parameters: Any) -> None:
    host.models.mkdir(parents=True)
    with prepared._alone(host.models) as alone:
        assert alone
        base = host.load(parameters())
        assert base.quantised and base.choices.value(COPY) == "none" and copies_of(host) == []
    assert host.load(parameters()).choices.value(COPY) == "made"


def test_answers_do_not_repack_what_is_saved(host: Any, parameters: Any) -> None:
    """On some CPUs bitsandbytes would repack a weight when it answers; neither base may ever do that."""
    for expected in ("made", "read"):
        base = host.load(parameters())
        assert base.choices.value(COPY) == expected
        before = {name: tensor.clone() for name, tensor in tensors(base).items()}
        with torch.inference_mode():
            base.model.eval()(torch.tensor([[10, 20, 30]]))
        assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(base).items())
