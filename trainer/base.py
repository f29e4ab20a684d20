"""The embedded base: a tiny Qwen3 with its own tokenizer, built from data/corpus, cached by its inputs' hash.

It exists so that the whole line runs for real without a GPU or a download. Torch is imported inside the
functions that need it: the hash of the inputs is wanted where torch is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

NAME = "embedded"
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>",
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """What is built and how long it is pretrained; sizes in tokens or units, the rate is AdamW's peak."""

    vocab_size: int = 2560
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 3
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 32
    max_position_embeddings: int = 4096
    # Wider than Qwen3's 0.02: with tied embeddings of that size no logit of a 256-wide model can grow beyond
    # about 5, so a frozen head could never be sure of a token, however well an adapter is trained.
    initializer_range: float = 0.06
    # The scale that the last norm starts with (1 in Qwen3), for the same reason: LoRA leaves norms and head alone.
    # Measured on the 12 writing rows, 60 updates of rank 16: loss 0.01 with 4, 0.15 with 1.
    final_norm_scale: float = 4.0
    block_tokens: int = 128
    batch_size: int = 4
    steps: int = 200
    learning_rate: float = 3e-3
    seed: int = 42


def corpus_files(corpus: Path) -> list[Path]:
    """The course texts (*.md, *.txt) in name order; InputError when there is none, or only empty ones."""
    found = sorted(p for p in corpus.glob("*") if p.suffix in (".md", ".txt") and p.is_file())
    if not any(path.read_bytes().strip() for path in found):
        raise InputError(f"no course text in {corpus}; put .md or .txt files there to build the embedded base")
    return found


def input_hash(corpus: Path, recipe: Recipe | None = None) -> str:
    """sha256 over the corpus, this module, the chat template and the recipe: the key of the cache."""
    digest = hashlib.sha256()
    here = Path(__file__)
    for path in [here, here.parent / "templates" / "chatml.jinja", *corpus_files(corpus)]:
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    digest.update(json.dumps(asdict(recipe or Recipe()), sort_keys=True).encode())
    return digest.hexdigest()


def location(models: Path, corpus: Path, recipe: Recipe | None = None) -> Path:
    """Where the base of these inputs lies or will lie."""
    return models / f"embedded-{input_hash(corpus, recipe)[:16]}"


def is_complete(folder: Path) -> bool:
    """Whether the folder holds a base whose files are those written at the end of its build."""
    try:
        listed = json.loads((folder / "base.json").read_text(encoding="utf-8"))["files"]
        return bool(listed) and all(_sha256(folder / name) == expected for name, expected in listed.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def build(models: Path, corpus: Path, recipe: Recipe | None = None, say: Callable[[str], None] = print) -> Path:
    """Build the base unless a complete one is there; returns its folder.

    The folder appears under its final name only when everything in it is written.
    """
    recipe = recipe or Recipe()
    target = location(models, corpus, recipe)
    if is_complete(target):
        say(f"embedded base: up to date ({target.name})")
        return target
    started = time.monotonic()
    fresh = models / f".{target.name}.{os.getpid()}"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        texts = [path.read_text(encoding="utf-8") for path in corpus_files(corpus)]
        tokenizer = train_tokenizer(texts, recipe)
        model, loss = pretrain(texts, tokenizer, recipe, say)
        tokenizer.save_pretrained(fresh)
        model.save_pretrained(fresh)
        record = {
            "input_hash": input_hash(corpus, recipe),
            "recipe": asdict(recipe),
            "final_loss": loss,
            "files": {p.name: _sha256(p) for p in sorted(fresh.iterdir()) if p.is_file()},
        }
        (fresh / "base.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)  # incomplete, or we would have returned above
        fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    say(f"embedded base: built in {time.monotonic() - started:.0f} s ({target.name}, loss {loss:.2f})")
    return target


def train_tokenizer(texts: list[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the texts with ChatML's special tokens and our chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    core.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=recipe.vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
            # Longer merges would be whole clauses: fewer tokens, but answers could not be recomposed from them.
            max_token_length=12,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=recipe.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    template = Path(__file__).parent / "templates" / "chatml.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    return tokenizer


def pretrain(
    texts: list[str], tokenizer: PreTrainedTokenizerFast, recipe: Recipe, say: Callable[[str], None]
) -> tuple[Qwen3ForCausalLM, float]:
    """A Qwen3 of the recipe's size trained on random windows of the texts; returns it and its last loss."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    with _seeded(recipe.seed):
        model = Qwen3ForCausalLM(Qwen3Config(**_architecture(recipe, tokenizer)))
        torch.nn.init.constant_(model.model.norm.weight, recipe.final_norm_scale)
        ids = torch.tensor(tokenizer.backend_tokenizer.encode("\n\n".join(texts)).ids)
        optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1
        )
        window = min(recipe.block_tokens, len(ids) - 1)
        offsets = torch.arange(window)
        loss = torch.tensor(float("nan"))
        model.train()
        for step in range(recipe.steps):
            starts = torch.randint(0, len(ids) - window, (recipe.batch_size, 1))
            batch = ids[starts + offsets]
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            if (step + 1) % 50 == 0:
                say(f"embedded base: step {step + 1}/{recipe.steps}, loss {loss.item():.2f}")
        model.eval()
        return model, loss.item()


def _architecture(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    sizes = asdict(recipe)
    for training_only in ("final_norm_scale", "block_tokens", "batch_size", "steps", "learning_rate", "seed"):
        del sizes[training_only]
    return {
        **sizes,
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": True,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Deterministic algorithms and a fixed seed, the former setting restored afterwards."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return (
            hashlib.file_digest(stream, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else hashlib.sha256(stream.read()).hexdigest()
        )
