"""Greedy answers to many questions at once: an answer that has ended costs nothing more, a waiting one takes its place.

transformers' generate() pads every prompt to the longest one and carries every row to the end of the last one. Here
prompts of like length are read together, the keys and values of all rows live in one cache that is written in place,
a row that has ended leaves it, and waiting rows come in (continuous batching, Yu et al. 2022, Orca). The tokens are
those of generate(), which the tests hold against it; benchmarks/generation.py measures what it gains.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from trainer.crew import ALONE, Crew

READ_TOKENS = 4096  # of prompts, padding included, that are read at once
SPARE_COLUMNS = 128  # tokens by which the cache grows


@dataclass
class _Span:
    """The part of the cache in use, the same in each layer: rows 0 to `rows`, columns `start` to `end`."""

    rows: int = 0
    start: int = 0
    end: int = 0


class _Layer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, (rows, heads, columns, width); every row ends at the column `span.end`."""

    def __init__(self, span: _Span) -> None:
        super().__init__()
        self.span = span
        self.keys: Any = None
        self.values: Any = None
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the next token of every row; the model moves `span` on when all layers have theirs."""
        rows, start, end = self.span.rows, self.span.start, self.span.end
        self.keys[:rows, :, end : end + 1] = key_states
        self.values[:rows, :, end : end + 1] = value_states
        return self.keys[:rows, :, start : end + 1], self.values[:rows, :, start : end + 1]

    def get_seq_length(self) -> int:
        return self.span.end - self.span.start

    def move(self, target: int, source: int) -> None:
        """The row `source` takes the place of the row `target`."""
        for held in (self.keys, self.values):
            held[target, :, self.span.start : self.span.end] = held[source, :, self.span.start : self.span.end]

    def resettle(self, width: int, new: DynamicLayer | None) -> None:
        """Into fresh tensors, `width` columns and SPARE_COLUMNS wide, with the rows of `new` below the own ones."""
        self.keys = self._resettled(self.keys, width, None if new is None else new.keys)
        self.values = self._resettled(self.values, width, None if new is None else new.values)

    def _resettled(self, old: torch.Tensor | None, width: int, new: torch.Tensor | None) -> torch.Tensor:
        parts = [part for part in (old, new) if part is not None]
        like, count = parts[0], self.span.rows + (0 if new is None else len(new))
        # Zeros: what a row does not use is masked, but a masked NaN of unwritten memory would still spoil its sum.
        fresh = like.new_zeros(count, like.shape[1], width + SPARE_COLUMNS, like.shape[3])
        if old is not None:
            held = self.span.end - self.span.start
            fresh[: self.span.rows, :, width - held : width] = old[: self.span.rows, :, self.span.start : self.span.end]
        if new is not None:
            fresh[self.span.rows :, :, width - new.shape[2] : width] = new
        return fresh


class _Rows(Cache):  # type: ignore[misc]
    """The cache of the rows that are being answered."""

    def __init__(self, layers: int) -> None:
        self.span = _Span()
        self.own = [_Layer(self.span) for _ in range(layers)]
        super().__init__(layers=self.own)

    def admit(self, read: DynamicCache, rows: int) -> None:
        """Take over the `rows` rows of prompts that the model has just read."""
        width = max(self.span.end - self.span.start, read.get_seq_length())
        self._resettle(width, read)
        self.span.rows += rows

    def _resettle(self, width: int, read: DynamicCache | None = None) -> None:
        for number, layer in enumerate(self.own):
            layer.resettle(width, None if read is None else read.layers[number])
            if read is not None:
                read.layers[number].reset()  # what is copied need not be held twice
        self.span.start, self.span.end = 0, width

    def leave(self, row: int) -> None:
        """The row has ended; the last one takes its place."""
        self.span.rows -= 1
        if row != self.span.rows:
            for layer in self.own:
                layer.move(row, self.span.rows)

    def fit(self, longest: int) -> None:
        """Use no more columns than the `longest` row, and have room for one more."""
        self.span.start = max(self.span.start, self.span.end - longest)
        if self.span.end == self.own[0].keys.shape[2]:
            self._resettle(self.span.end - self.span.start)


@dataclass
class _Row:
    """An answer in the making: `length` tokens are in the cache, the last of `tokens` is not yet."""

    index: int
    length: int
    tokens: list[int] = field(default_factory=list)


class Decoder:
    """Answers prompts of one model; `stops` end an answer and belong to it, `pad` fills up shorter prompts.

    `crew`: the processes that share the model's weights, each with prompts of its own; ALONE where none are shared.
    """

    def __init__(self, model: PreTrainedModel, stops: Sequence[int], pad: int, crew: Crew = ALONE) -> None:
        self.model, self.stops, self.pad, self.crew = model, frozenset(stops), pad, crew

    def answer(
        self, prompts: Sequence[Sequence[int]], caps: Sequence[int], slots: int,
        done: Callable[[int, list[int]], None],
    ) -> None:  # fmt: skip
        """Tell `done(index, tokens)` for each prompt as soon as its answer ends, at most `caps[index]` tokens long.

        At most `slots` are answered at a time, in the order given: prompts of like length should follow each other.
        """
        waiting = deque(range(len(prompts)))
        cache, live = _Rows(self.model.config.get_text_config().num_hidden_layers), list[_Row]()
        # Weights that are gathered for the first time in inference mode could not be trained through any more.
        with torch.inference_mode() if self.crew.size == 1 else torch.no_grad(), self.crew.in_step():
            while self.crew.any(bool(waiting or live)):
                if not (waiting or live):  # others do: they need this process's share for each of their turns
                    self.model(input_ids=torch.tensor([[self.pad]], device=self.model.device), use_cache=False)
                    continue
                free = slots - len(live)
                if waiting and free >= max(1, slots // 4 if live else 1):  # coming in copies the cache: not for one row
                    group = self._group(waiting, prompts, free)
                    tokens = self._read(cache, live, [prompts[index] for index in group], group)
                    self._take(cache, live, len(live) - len(group), tokens, caps, done)
                else:
                    self._take(cache, live, 0, self._step(cache, live), caps, done)

    def _group(self, waiting: deque[int], prompts: Sequence[Sequence[int]], free: int) -> list[int]:
        """The next rows whose prompts are read together: at most READ_TOKENS, unless one alone is longer."""
        group = [waiting.popleft()]
        width = len(prompts[group[0]])
        while waiting and len(group) < free:
            width = max(width, len(prompts[waiting[0]]))
            if (len(group) + 1) * width > READ_TOKENS:
                break
            group.append(waiting.popleft())
        return group

    def _read(
        self, cache: _Rows, live: list[_Row], prompts: list[Sequence[int]], indices: list[int]
    ) -> list[int]:  # fmt: skip
        """Let rows with these prompts come in; the first token of each answer."""
        width, device = max(map(len, prompts)), self.model.device
        ids = torch.tensor([[self.pad] * (width - len(item)) + list(item) for item in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(item)) + [1] * len(item) for item in prompts], device=device)
        read = DynamicCache(config=self.model.config)
        found = self.model(
            input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0), past_key_values=read,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        cache.admit(read, len(prompts))
        live += [_Row(index, len(prompt)) for index, prompt in zip(indices, prompts, strict=True)]
        return _greedy(found.logits)

    def _step(self, cache: _Rows, live: list[_Row]) -> list[int]:
        """The next token of every live row."""
        longest = max(row.length for row in live)
        cache.fit(longest)
        device, width = self.model.device, cache.span.end - cache.span.start + 1
        ids = torch.tensor([[row.tokens[-1]] for row in live], device=device)
        lengths = torch.tensor([[row.length] for row in live], device=device)
        mask = torch.arange(width, device=device) >= width - 1 - lengths
        found = self.model(
            input_ids=ids, attention_mask=mask.long(), position_ids=lengths, past_key_values=cache, use_cache=True
        )
        cache.span.end += 1
        for row in live:
            row.length += 1
        return _greedy(found.logits)

    def _take(
        self, cache: _Rows, live: list[_Row], begin: int, tokens: list[int], caps: Sequence[int],
        done: Callable[[int, list[int]], None],
    ) -> None:  # fmt: skip
        """Add the tokens to the rows from `begin` on; those that end leave."""
        for row, token in zip(live[begin:], tokens, strict=True):
            row.tokens.append(token)
        for place in range(len(live) - 1, begin - 1, -1):
            row = live[place]
            if row.tokens[-1] in self.stops or len(row.tokens) == caps[row.index]:
                done(row.index, row.tokens)
                cache.leave(place)
                last = live.pop()
                if last is not row:
                    live[place] = last


def _greedy(logits: torch.Tensor) -> list[int]:
    """The likeliest token of each row, compared in float32 as generate() does."""
    found: list[int] = logits[:, -1].float().argmax(-1).tolist()
    return found


def is_for(model: PreTrainedModel) -> bool:
    """Whether every layer of the model keeps all keys and values: else its cache is not one of rows and columns."""
    layers = DynamicCache(config=model.config).layers
    stateful = getattr(model, "_is_stateful", False) or model.config.is_encoder_decoder
    return bool(layers) and not stateful and all(type(layer) is DynamicLayer for layer in layers)
