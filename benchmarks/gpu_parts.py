"""What benchmarks/gpu.py measures in a process with torch: a base of random weights, its loading, training, answers.

Every figure comes through the trainer's own path: Resident.get, train.train, generate.answer.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from trainer import config, generate, merging, shape, throughput
from trainer.base import Recipe, corpus_files, train_tokenizer
from trainer.budget import lengths_of
from trainer.choices import for_answers, for_training
from trainer.data import load_rows
from trainer.encoding import IGNORED, Example
from trainer.model import Base, attach_adapter, detach_adapter
from trainer.resident import Resident
from trainer.state import Layout
from trainer.train import train

Emit = Callable[..., None]  # emit(part, **figures)
# Qwen3-8B's config.json on the hub, as far as it shapes weights and their use.
QWEN3_8B = {
    "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "tie_word_embeddings": False,
}  # fmt: skip
TINY = {
    **QWEN3_8B, "vocab_size": 3000, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096,
}  # fmt: skip
PASSES = (1024, 2048)  # tokens
STEP_TOKENS = 16384  # of an optimiser step
STEPS = 6  # that are timed, after one that is not
NEW_TOKENS = 256  # of an answer: random weights do not stop
ALONE = 2  # questions that are answered one by one


@dataclass(frozen=True)
class Size:
    """What differs between the real run and --tiny."""

    config: dict[str, Any]
    shard_bytes: int
    passes: tuple[int, ...]
    step_tokens: int
    steps: int
    new_tokens: int


FULL = Size(QWEN3_8B, 4 << 30, PASSES, STEP_TOKENS, STEPS, NEW_TOKENS)
SMALL = Size(TINY, 1 << 20, (64, 128), 256, 2, 8)


def write_base(folder: Path, size: Size, corpus: Path, emit: Emit) -> None:
    """A base of that size with random weights in shards, and a tokenizer whose ids it knows; kept when it is whole."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        emit("weights", seconds=0.0, bytes=json.loads(index.read_text("utf-8"))["metadata"]["total_size"])
        return
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer([path.read_text(encoding="utf-8") for path in corpus_files(corpus)], Recipe())
    tokenizer.save_pretrained(folder)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    settings = Qwen3Config(**size.config, **ends, dtype="bfloat16", architectures=["Qwen3ForCausalLM"])
    settings.save_pretrained(folder)
    with torch.device("meta"):
        sizes = {name: weight.shape for name, weight in Qwen3ForCausalLM(settings).state_dict().items()}
    shards: list[list[str]] = [[]]
    room = size.shard_bytes
    for name, shaped in sizes.items():
        if shards[-1] and room < 2 * shaped.numel():
            shards.append([])
            room = size.shard_bytes
        shards[-1].append(name)
        room -= 2 * shaped.numel()
    places: dict[str, str] = {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    draw = torch.Generator(device).manual_seed(42)
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: _weight(sizes[name], draw) for name in names}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    total = sum(2 * shaped.numel() for shaped in sizes.values())
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}), encoding="utf-8")
    emit("weights", seconds=time.monotonic() - began, bytes=total)


def _weight(shaped: torch.Size, draw: torch.Generator) -> torch.Tensor:
    """Ones for a norm, else normal with Qwen3's initialiser_range."""
    if len(shaped) == 1:
        return torch.ones(shaped, dtype=torch.bfloat16)
    return torch.normal(0.0, 0.02, shaped, generator=draw, device=draw.device, dtype=torch.bfloat16).cpu()


def forget_files(folder: Path, whole: bool) -> str:
    """Take the files of a folder out of the kernel's cache, or (`whole`, as root) all; says how that was done."""
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())  # a page that is not written yet would stay
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with contextlib.suppress(OSError):
        if whole:
            Path("/proc/sys/vm/drop_caches").write_text("1", encoding="ascii")
            return "all caches dropped"
    return "dropped by fadvise"  # without root; a hypervisor's cache below is not ours to empty


class Measure:
    """The parts of one kind of base, nf4 or bf16 (on a CPU: nf4 or float32)."""

    def __init__(self, base: Path, kind: str, size: Size, root: Path, data: Path, emit: Emit) -> None:
        self.size, self.data, self.emit, self.kind = size, data, emit, kind
        self.layout = Layout(root)
        self.folder = base
        self.parameters = config.Parameters(
            model_name_or_path=str(base), use_qlora=kind == "nf4", save_steps=0, save_seconds=0, lora_dropout=0.0,
            max_new_tokens=size.new_tokens, max_new_tokens_ratio=0.0, num_train_epochs=1.0,
            per_device_eval_batch_size=0,
        )  # fmt: skip
        self.base: Base | None = None
        speed = throughput.of_card(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else None
        self.peak = speed.flops if speed else None

    def run(self) -> None:
        """Every part, each told as soon as it is done."""
        self.load()
        self.training()
        self.answers()

    def load(self) -> None:
        """Cold, prepared and warm; what is loaded last stays."""
        if self.kind == "nf4":
            self._load("16-bit files, cold: quantised on the way, copy made", self.folder)
            copies = sorted(self.layout.models.glob("prepared-*"))
            self._load("prepared copy, cold", copies[-1] if copies else self.folder)
            self._load("prepared copy, warm", None)
        else:
            self._load("16-bit files, cold", self.folder)
            self._load("16-bit files, warm", None)

    def _load(self, what: str, cold: Path | None) -> None:
        self.base = None
        gc.collect()
        _forget_peak()
        how = forget_files(cold, torch.cuda.is_available()) if cold else "as left by the load before"
        began = time.monotonic()
        resident = Resident(self.layout, lambda event, **fields: None)
        self.base = resident.get(self.parameters, Path())
        _finish()
        seconds = time.monotonic() - began
        spent = resident.spent
        self.emit(
            "load", kind=self.kind, what=what, cache=how, seconds=seconds - sum(spent.values()),
            check_seconds=spent.get("check_seconds", 0.0), prepare_seconds=spent.get("prepare_seconds", 0.0),
            peak_bytes=_peak(),
        )  # fmt: skip

    def training(self) -> None:
        """Tokens per second at each width of a pass, at the width that is chosen, and with checkpointing."""
        widest = self.size.passes[-1]
        for tokens in self.size.passes:
            self._train(f"{tokens} packed", tokens, tokens, "auto")
        self._train(f"{widest} packed, checkpointing", widest, widest, True)
        self._train("as chosen", widest, 0, "auto")

    def _train(self, what: str, row_tokens: int, tokens_per_pass: int, checkpointing: bool | str) -> None:
        rows = packable(self.size.step_tokens, row_tokens)
        values = replace(
            self.parameters, packing="padding_free", tokens_per_pass=tokens_per_pass,
            gradient_checkpointing=checkpointing, gradient_accumulation_steps=len(rows),
        )  # fmt: skip
        self._steps(rows, replace(values, max_steps=1))
        _forget_peak()
        assert self.base is not None
        found = self._steps(rows, replace(values, max_steps=self.size.steps))
        seconds, tokens = found["spent"]["train_seconds"], self.size.steps * sum(len(row.input_ids) for row in rows)
        trained = self.size.steps * sum(row.trained_tokens for row in rows)
        pairs = self.size.steps * sum(len(row.input_ids) ** 2 / 2 for row in rows)
        sizes = shape.of_folder(self.folder)
        assert sizes is not None
        adapter = shape.adapter_parameters(sizes, values.lora_r, values.lora_target_modules)
        flops = throughput.training_flops(sizes, adapter, tokens, trained, pairs, checkpointing=False)
        self.emit(
            "training", kind=self.kind, what=what, tokens_per_second=tokens / seconds,
            trained_tokens_per_second=trained / seconds, flops_per_second=flops / seconds, peak_flops=self.peak,
            peak_bytes=_peak(), steps=found["steps"], seconds=seconds, layout=found["layout"],
            tokens_per_pass=found["tokens_per_pass"], checkpointing=found["gradient_checkpointing"],
            out_of_memory=len(found["out_of_memory"]), attention=self.base.choices.value("attention"),
        )  # fmt: skip

    def _steps(self, rows: list[Example], values: config.Parameters) -> dict[str, Any]:
        base = self.base
        assert base is not None
        lengths = lengths_of((len(row.input_ids) for row in rows), (row.trained_tokens for row in rows))
        chosen = for_training(values, base.device, base.shape, base.choices, lengths, values.max_steps)
        adapted = attach_adapter(base, values)
        try:
            folder = self.layout.root / "scratch"
            return train(adapted, base, rows, values, folder, lambda *event, **fields: None, choices=chosen)
        finally:
            detach_adapter(adapted, base)

    def answers(self) -> None:
        """Generated tokens per second: all questions as batch and merging are chosen, then a few one by one."""
        base = self.base
        assert base is not None
        rows = [row for file in sorted(self.data.glob("training/eval/*.jsonl")) for row in load_rows(file)]
        rows += load_rows(self.data / "training" / "processed" / "all_sft.jsonl")
        for what, asked, batch in (("all at once", rows, 0), ("one by one", rows[:ALONE], 1)):
            adapted = attach_adapter(base, self.parameters)
            values = replace(self.parameters, per_device_eval_batch_size=batch)
            questions = [generate.ask(adapted, base.tokenizer, row, values) for row in asked]
            longest = max(len(item.prompt) + item.cap for item in questions)
            chosen = for_answers(values, base.device, base.shape, base.choices, len(asked), longest)
            merge = chosen.value("merge") and merging.choose(adapted, base, values).value
            _forget_peak()
            try:
                with merging.merged(adapted) if merge else contextlib.nullcontext():
                    found = generate.answer(
                        adapted, base.tokenizer, asked, values, lambda done, all: None, batch=chosen.value("eval_batch")
                    )
            finally:
                detach_adapter(adapted, base)
            self.emit(
                "answers", kind=self.kind, what=what, questions=len(asked), tokens=found.tokens,
                seconds=found.seconds, tokens_per_second=found.tokens / found.seconds, peak_bytes=_peak(),
                batch=chosen.value("eval_batch"), merged=bool(merge),
            )  # fmt: skip


def packable(step_tokens: int, row_tokens: int) -> list[Example]:
    """Rows of a step that fill passes of `row_tokens` to the last token: a half, a quarter and two eighths of each.

    Half of every row carries loss, as in the tutors' data.
    """
    rows: list[Example] = []
    for _ in range(step_tokens // row_tokens):
        for part in (2, 4, 8, 8):
            length = row_tokens // part
            ids = [16 + (7 * len(rows) + 3 * place) % 2000 for place in range(length)]
            rows.append(Example(f"made-{len(rows)}", 1, ids, [IGNORED] * (length // 2) + ids[length // 2 :]))
    return rows


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _forget_peak() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak() -> int:
    """Bytes: the peak of the device since it was forgotten; without a GPU that of the process in its life."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
