"""Beginnings that rows of a pass have in common, such as the system prompt: computed for one, used by all.

A token's state depends on the tokens before it alone, so equal beginnings have equal states, keys and values. A row
that begins like another one of its pass, or goes on where it ends (the turns of one talk), borrows that part: it goes
through the model with its own tokens only, and attention gives it the lender's keys and values in front. Losses and
gradients are those of whole rows up to the order of additions; only dropout, which draws for each token that is
computed, draws once for what is shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainer.encoding import IGNORED
from trainer.feed import Item, learned

LEAST = 16  # tokens: below, cutting and joining keys and values costs more than so few tokens


@dataclass(frozen=True)
class Span:
    """A row of a pass: how many tokens of it are laid out, and how many before them are those of the row `lender`.

    `lender` is an earlier place among the spans of the pass; a row without one borrows nothing.
    """

    own: int
    borrowed: int = 0
    lender: int = -1

    @property
    def length(self) -> int:
        """Of the whole row."""
        return self.own + self.borrowed


def whole(lengths: Sequence[int]) -> tuple[Span, ...]:
    """The spans of rows that borrow nothing."""
    return tuple(Span(length) for length in lengths)


def common(item: Item, lender: Item) -> int:
    """How many tokens `item` can borrow from `lender`, 0 when fewer than LEAST.

    The first token whose successor is learned is the row's own, for it is scored for this very row.
    """
    scored = (learned(item.labels) != IGNORED).nonzero()
    most = min(int(scored[0]) if len(scored) else len(item) - 1, len(lender))
    differ = (item.input_ids[:most] != lender.input_ids[:most]).nonzero()
    tokens = int(differ[0]) if len(differ) else most
    return tokens if tokens >= LEAST else 0


def plan(items: Sequence[Item], most_tokens: int) -> list[list[int]]:
    """Which rows share a pass, by place in `items`; a row beyond `most_tokens` goes alone.

    Rows come in the order of their tokens, so that each has its longest common beginning with the row before it, and
    go into the first pass that has room for what they do not borrow there.
    """
    passes: list[list[int]] = []
    filled: list[int] = []
    for place in sorted(range(len(items)), key=lambda place: items[place].input_ids.tolist()):
        for number, group in enumerate(passes):
            own = len(items[place]) - common(items[place], items[group[-1]])
            if filled[number] + own <= most_tokens:
                group.append(place)
                filled[number] += own
                break
        else:
            passes.append([place])
            filled.append(len(items[place]))
    return passes


def spans(items: Sequence[Item]) -> tuple[Span, ...]:
    """Each row's span, in the order of `plan`: it borrows from the row before it.

    What that one has borrowed itself is borrowed from where it comes from, so that chains stay short.
    """
    found: list[Span] = []
    for place, item in enumerate(items):
        tokens, lender = (common(item, items[place - 1]), place - 1) if place else (0, -1)
        while tokens and found[lender].borrowed >= tokens:
            lender = found[lender].lender
        found.append(Span(len(item) - tokens, tokens, lender if tokens else -1))
    return tuple(found)


def joined(pieces: Sequence[torch.Tensor], spans: Sequence[Span], dim: int) -> list[torch.Tensor]:
    """Whole rows from the laid-out pieces of queries, keys or values, along the dimension of the tokens.

    A beginning that several rows borrow is cut once: their gradients meet there and not in whole rows.
    """
    heads: dict[tuple[int, int], torch.Tensor] = {}
    found: list[torch.Tensor] = []
    for piece, span in zip(pieces, spans, strict=True):
        if not span.borrowed:
            found.append(piece)
            continue
        key = span.lender, span.borrowed
        if key not in heads:
            heads[key] = found[span.lender].narrow(dim, 0, span.borrowed)
        found.append(torch.cat([heads[key], piece], dim))
    return found
