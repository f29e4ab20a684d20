"""Layouts of a pass: rows one after another without padding, each seeing itself only, or padded side by side.

`padding_free` puts whole rows into one, [1, tokens]; attention takes every row by itself, so no token can reach
another row, whatever masks or positions say. `padded` is [rows, longest] with padding on the right, which causal
attention never looks at. Both give the same losses and gradients up to the order of additions.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from transformers import AttentionInterface, PreTrainedModel

from trainer.encoding import IGNORED
from trainer.feed import Item, learned

PADDING_FREE, PADDED = "padding_free", "padded"
ATTENTION = "row_by_row"
FLASH = "flash_attention_2"
VARLEN_CAPABILITY = (8, 0)  # torch's own flash kernel for rows of different lengths wants Ampere and 16 bits
PADDING = 0  # the id does not matter: nothing that is learned looks at it
# Scores of the whole vocabulary that are held at once, in numbers: 64 MB as float32. Beyond, TRL's tiles compute
# them twice but never hold them. With 2,560 words that is 6,553 learned tokens, with Qwen3's 151,936 it is 110.
DENSE_SCORES = 1 << 24


@dataclass(frozen=True)
class Pass:
    """What goes through the model at once.

    `input_ids` and `labels` (each token's own target, IGNORED where nothing is learned) are [1, tokens] without
    padding or [rows, longest] with it; `lengths` are those of the rows.
    """

    items: list[Item]
    layout: str
    input_ids: torch.Tensor
    labels: torch.Tensor
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """With padding: what the pass costs."""
        return int(self.input_ids.numel())


def plan(lengths: Sequence[int], most_tokens: int, layout: str) -> list[list[int]]:
    """Which rows share a pass, by place in `lengths`; a row beyond `most_tokens` goes alone.

    Without padding a row goes into the first pass that has room for it, the longest first (first-fit decreasing:
    never more than 11/9 of the fewest passes possible, Johnson 1973). With padding rows of like length go together.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    passes: list[list[int]] = []
    filled: list[int] = []
    for place in order:
        length = lengths[place]
        if layout == PADDED:
            rows = len(passes[-1]) + 1 if passes else 0
            fits = len(passes) - 1 if rows and rows * lengths[passes[-1][0]] <= most_tokens else None
        else:
            fits = next((n for n, used in enumerate(filled) if used + length <= most_tokens), None)
        if fits is None:
            passes.append([])
            filled.append(0)
            fits = -1
        passes[fits].append(place)
        filled[fits] += length
    return passes


def passes(items: Sequence[Item], most_tokens: int, layout: str) -> list[Pass]:
    """The passes of a step's rows, in CPU memory."""
    groups = plan([len(item) for item in items], most_tokens, layout)
    return [lay_out([items[place] for place in group], layout) for group in groups]


def lay_out(items: list[Item], layout: str) -> Pass:
    """One pass of these rows."""
    ids, labels = [item.input_ids for item in items], [learned(item.labels) for item in items]
    lengths = tuple(len(item) for item in items)
    if layout == PADDING_FREE:
        return Pass(items, layout, torch.cat(ids)[None], torch.cat(labels)[None], lengths)
    pad = torch.nn.utils.rnn.pad_sequence
    return Pass(items, layout, pad(ids, True, PADDING), pad(labels, True, IGNORED), lengths)


def empty(layout: str) -> Pass:
    """A pass of one token that teaches nothing: its loss and gradients are zero, and it goes through the whole model.

    For a process that has no rows left while others still have: see trainer/sharding.py.
    """
    nothing = torch.full((1, 1), PADDING)
    return Pass([], layout, nothing, torch.full_like(nothing, IGNORED), (1,))


def inputs(one: Pass, attention: str, device: torch.device) -> dict[str, Any]:
    """What the model is called with, on its device."""
    found: dict[str, Any] = {"input_ids": one.input_ids.to(device), "use_cache": False}
    if one.layout == PADDED:
        return found
    positions = torch.cat([torch.arange(length) for length in one.lengths])
    found["position_ids"] = positions[None].to(device)
    if attention == FLASH:
        longest = max(one.lengths)
        bounds = starts(one.lengths, device)
        found |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
    else:
        found["row_lengths"] = one.lengths
    return found


def starts(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """Where each row begins, and the end: int32 [rows + 1]."""
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


def row_by_row(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, *, row_lengths: Sequence[int], scaling: float | None = None,
    dropout: float = 0.0, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Causal attention of every row by itself; query [1, heads, tokens, size], keys and values may have fewer heads.

    Returns [1, tokens, heads, size]. On a GPU with 16 bits all rows go through one kernel of torch.
    """
    assert attention_mask is None, "rows that lie one after another know no mask"
    grouped = query.shape[1] != key.shape[1]
    if dropout == 0.0 and _has_varlen(value):
        from torch.nn.attention.varlen import varlen_attn

        bounds, longest = starts(row_lengths, value.device), max(row_lengths)
        rows = [part.to(value.dtype).transpose(1, 2)[0] for part in (query, key, value)]
        whole = varlen_attn(
            *rows, bounds, bounds, longest, longest, scale=scaling, window_size=(-1, 0), enable_gqa=grouped
        )
        return whole[None], None  # type: ignore[index]
    lengths = list(row_lengths)
    parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    attended = [
        functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=grouped
        )
        for q, k, v in parts
    ]
    return torch.cat(attended, 2).transpose(1, 2), None


def _has_varlen(value: torch.Tensor) -> bool:
    if value.device.type != "cuda" or value.dtype not in (torch.bfloat16, torch.float16):
        return False
    return bool(torch.cuda.get_device_capability(value.device) >= VARLEN_CAPABILITY and value.shape[-1] <= 256)


# Without a mask function of the same name transformers makes no mask at all.
AttentionInterface.register(ATTENTION, row_by_row)


@contextlib.contextmanager
def attending(model: PreTrainedModel, layout: str) -> Iterator[None]:
    """Within it the base attends as the layout needs it; afterwards, for the answers, as before."""
    before = model.config._attn_implementation
    if layout == PADDING_FREE and before != FLASH:
        model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)


def refusal(model: PreTrainedModel) -> str:
    """Why this model cannot take rows without padding, empty when it can; its own answer is asked for, too."""
    text = model.config.get_text_config()
    if not getattr(model, "_supports_attention_backend", False):
        return f"the attention of {type(model).__name__} cannot be replaced"
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"{type(model).__name__} has layers of {', '.join(sorted(kinds - {'full_attention'}))}"
    if getattr(text, "attn_logit_softcapping", None):
        return f"{type(model).__name__} caps its attention scores"
    if model.config._attn_implementation == "eager":
        return "eager attention was asked for"
    try:
        with attending(model, PADDING_FREE):
            return "" if is_isolated(model) else f"rows of {type(model).__name__} see each other"
    except (TypeError, ValueError, RuntimeError) as problem:
        if type(problem).__name__ == "OutOfMemoryError":
            raise
        return f"{type(model).__name__} does not compute rows without padding ({str(problem).splitlines()[0]})"


def is_isolated(model: PreTrainedModel) -> bool:
    """Whether a row's scores stay the same, bit by bit, when the row before it changes; a few tokens are asked."""
    device = model.get_input_embeddings().weight.device
    words = min(model.config.get_text_config().vocab_size, 64)
    other, row = torch.arange(7) % words, torch.arange(3, 14) % words
    training = model.training
    model.eval()
    try:
        scores = []
        for first in (other, other.flip(0)):
            items = [Item("", first, first), Item("", row, row)]
            given = inputs(lay_out(items, PADDING_FREE), model.config._attn_implementation, device)
            with torch.no_grad():
                scores.append(model(**given).logits[0, len(other) :])
    finally:
        model.train(training)
    return bool(torch.equal(*scores))


def loss(model: Any, one: Pass, attention: str, device: torch.device) -> torch.Tensor:
    """The sum of the losses of the pass's learned tokens, float32, with its graph.

    The model has TRL's fused head. Only tokens that learn something are scored.
    """
    given, labels = inputs(one, attention, device), one.labels
    places = (labels != IGNORED).any(0).nonzero()[:, 0]
    vocabulary = model.config.get_text_config().vocab_size
    if labels.shape[0] * len(places) * vocabulary > DENSE_SCORES:
        fused = model(**given, shift_labels=labels.to(device), fused_lm_head=True)
        return -fused.log_probs.float().sum()
    logits = model(**given, logits_to_keep=places.to(device)).logits.flatten(0, 1).float()
    targets = labels[:, places].flatten().to(device)
    return functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
