"""Layouts of a pass: rows one after another without padding, each seeing itself only, or padded side by side.

`padding_free` puts rows into one, [1, tokens]; attention takes every row by itself, so no token can reach another row,
whatever masks or positions say, and rows that begin alike can have that part computed once (trainer/prefixes.py).
`padded` is [rows, longest] with padding on the right, which causal attention never looks at. Both give the same
losses and gradients up to the order of additions.
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

from trainer import prefixes
from trainer.encoding import IGNORED
from trainer.feed import Item, learned
from trainer.prefixes import Span

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
    padding or [rows, longest] with it; `spans` tell which tokens are whose.
    """

    items: list[Item]
    layout: str
    input_ids: torch.Tensor
    labels: torch.Tensor
    spans: tuple[Span, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of the rows, with what they borrow."""
        return tuple(span.length for span in self.spans)

    @property
    def tokens(self) -> int:
        """With padding, without what is borrowed: what the pass costs."""
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


def passes(items: Sequence[Item], most_tokens: int, layout: str, sharing: bool = False) -> list[Pass]:
    """The passes of a step's rows, in CPU memory; with `sharing` equal beginnings are laid out once in a pass."""
    if sharing and layout == PADDING_FREE:
        groups = prefixes.plan(items, most_tokens)
    else:
        groups = plan([len(item) for item in items], most_tokens, layout)
    return [lay_out([items[place] for place in group], layout, sharing) for group in groups]


def lay_out(items: list[Item], layout: str, sharing: bool = False) -> Pass:
    """One pass of these rows."""
    ids, labels = [item.input_ids for item in items], [learned(item.labels) for item in items]
    if layout == PADDED:
        pad = torch.nn.utils.rnn.pad_sequence
        spans = prefixes.whole([len(item) for item in items])
        return Pass(items, layout, pad(ids, True, PADDING), pad(labels, True, IGNORED), spans)
    spans = prefixes.spans(items) if sharing else prefixes.whole([len(item) for item in items])
    own_ids, own_labels = (
        torch.cat([row[span.borrowed :] for row, span in zip(rows, spans, strict=True)])[None] for rows in (ids, labels)
    )
    return Pass(items, layout, own_ids, own_labels, spans)


def empty(layout: str) -> Pass:
    """A pass of one token that teaches nothing: its loss and gradients are zero, and it goes through the whole model.

    For a process that has no rows left while others still have: see trainer/sharding.py.
    """
    nothing = torch.full((1, 1), PADDING)
    return Pass([], layout, nothing, torch.full_like(nothing, IGNORED), prefixes.whole([1]))


def inputs(one: Pass, attention: str, device: torch.device) -> dict[str, Any]:
    """What the model is called with, on its device."""
    found: dict[str, Any] = {"input_ids": one.input_ids.to(device), "use_cache": False}
    if one.layout == PADDED:
        return found
    positions = torch.cat([torch.arange(span.borrowed, span.length) for span in one.spans])
    found["position_ids"] = positions[None].to(device)
    if attention == FLASH:
        assert not any(span.borrowed for span in one.spans), "flash-attn's own function joins no rows"
        lengths = [span.length for span in one.spans]
        longest, bounds = max(lengths), starts(lengths, device)
        found |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
    else:
        found["spans"] = one.spans
    return found


def starts(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """Where each row begins, and the end: int32 [rows + 1]."""
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


def row_by_row(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, *, spans: Sequence[Span], scaling: float | None = None,
    dropout: float = 0.0, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Causal attention of every row by itself; query [1, heads, tokens, size], keys and values may have fewer heads.

    Returns [1, tokens, heads, size]. On a GPU with 16 bits all rows go through one kernel of torch. A row that borrows
    its beginning attends as a whole one; what that gives for the borrowed tokens, the lender has already.
    """
    assert attention_mask is None, "rows that lie one after another know no mask"
    grouped, borrows = query.shape[1] != key.shape[1], any(span.borrowed for span in spans)
    own, lengths = [span.own for span in spans], [span.length for span in spans]
    if dropout == 0.0 and _has_varlen(value):
        from torch.nn.attention.varlen import varlen_attn

        laid = [part.to(value.dtype) for part in (query, key, value)]
        if borrows:
            laid = [torch.cat(prefixes.joined(part.split(own, 2), spans, 2), 2) for part in laid]
        bounds, longest = starts(lengths, value.device), max(lengths)
        found: Any = varlen_attn(
            *(part.transpose(1, 2)[0] for part in laid), bounds, bounds, longest, longest, scale=scaling,
            window_size=(-1, 0), enable_gqa=grouped,
        )  # fmt: skip
        return (_own(found.split(lengths), spans, 0) if borrows else found)[None], None
    rows = zip(*(prefixes.joined(part.split(own, 2), spans, 2) for part in (query, key, value)), strict=True)
    attended = [
        functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=grouped
        )
        for q, k, v in rows
    ]
    return _own(attended, spans, 2).transpose(1, 2), None


def _own(rows: Sequence[torch.Tensor], spans: Sequence[Span], dim: int) -> torch.Tensor:
    """What the rows have of their own, one after another along `dim`."""
    return torch.cat([row.narrow(dim, span.borrowed, span.own) for row, span in zip(rows, spans, strict=True)], dim)


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
    """Whether a row's scores stay the same, bit by bit, when the row before it changes; a few tokens are asked.

    Asked of whole rows and, but for flash-attn, of one that borrows its beginning from a row that goes on otherwise.
    """
    device, attention = model.get_input_embeddings().weight.device, model.config._attn_implementation
    words = min(model.config.get_text_config().vocab_size, 64)
    alike, other, row = torch.arange(prefixes.LEAST) % words, torch.arange(7) % words, torch.arange(3, 14) % words
    training = model.training
    model.eval()
    try:
        for sharing in (False, True) if attention != FLASH else (False,):
            scores = []
            for end in (other, other.flip(0)):
                ids = [torch.cat([alike, end]), torch.cat([alike, row])]
                items = [Item("", one, one.new_full(one.shape, IGNORED)) for one in ids]
                given = inputs(lay_out(items, PADDING_FREE, sharing), attention, device)
                with torch.no_grad():
                    scores.append(model(**given).logits[0, len(ids[0]) :])
            if not torch.equal(*scores):
                return False
    finally:
        model.train(training)
    return True


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
