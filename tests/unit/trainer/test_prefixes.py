"""What rows borrow from each other: which tokens, from whom, and that whole rows come back together."""

from __future__ import annotations

import itertools

import pytest
import torch

from trainer import packing, prefixes
from trainer.encoding import IGNORED
from trainer.feed import Item
from trainer.prefixes import LEAST, Span, common, joined, plan, spans

SYSTEM = list(range(100, 100 + 2 * LEAST))


def item(name: str, prompt: list[int], answer: list[int]) -> Item:
    """A row whose answer is learned."""
    ids = torch.tensor([*prompt, *answer])
    return Item(name, ids, torch.tensor([IGNORED] * len(prompt) + answer))


def test_equal_beginnings_are_borrowed_up_to_the_first_token_that_is_scored() -> None:
    lender = item("a", [*SYSTEM, 1, 2, 3], [7, 8])
    assert common(item("b", [*SYSTEM, 1, 5], [9]), lender) == len(SYSTEM) + 1
    assert common(item("b", [*SYSTEM, 1, 2, 3], [9]), lender) == len(SYSTEM) + 2, "the last one predicts 9"
    assert common(item("b", SYSTEM, [1, 2, 3]), lender) == len(SYSTEM) - 1
    assert common(lender, lender) == len(SYSTEM) + 2
    assert common(item("b", [1, *SYSTEM], [9]), lender) == 0


def test_few_tokens_are_not_worth_borrowing() -> None:
    lender = item("a", SYSTEM, [1])
    assert common(item("b", [*SYSTEM[:LEAST], 1], [9]), lender) == LEAST
    assert common(item("b", [*SYSTEM[: LEAST - 1], 1], [9]), lender) == 0


def test_a_row_that_learns_nothing_keeps_a_token() -> None:
    lender = item("a", SYSTEM, [1])
    row = Item("b", torch.tensor(SYSTEM), torch.full((len(SYSTEM),), IGNORED))
    assert common(row, lender) == len(SYSTEM) - 1


def test_the_turns_of_a_talk_go_on_where_the_one_before_ends() -> None:
    first, second = item("1", SYSTEM, [1, 2]), item("2", [*SYSTEM, 1, 2, 3], [4])
    third = item("3", [*SYSTEM, 1, 2, 3, 4, 5], [6])
    rows = [third, first, second]
    (group,) = plan(rows, 1000)
    ordered = [rows[place] for place in group]
    assert [row.row_id for row in ordered] == ["1", "2", "3"]
    n = len(SYSTEM)
    assert spans(ordered) == (Span(n + 2), Span(2, n + 2, 0), Span(2, n + 4, 1))


def test_what_was_borrowed_comes_from_where_it_lies() -> None:
    rows = [item(str(n), [*SYSTEM, n], [n]) for n in range(4)]
    found = spans(rows)
    assert [span.lender for span in found] == [-1, 0, 0, 0]
    assert [span.borrowed for span in found] == [0, *[len(SYSTEM)] * 3]
    assert [span.length for span in found] == [len(row) for row in rows]


@pytest.mark.parametrize("most", [1, 30, 60, 90, 1000])
def test_a_pass_is_within_its_limit_or_one_row_alone(most: int) -> None:
    other = [token + 500 for token in SYSTEM]
    rows = [item(f"{n}", [*(SYSTEM if n % 2 else other), *range(n)], [n]) for n in range(9)]
    groups = plan(rows, most)
    assert sorted(itertools.chain(*groups)) == list(range(9))
    for group in groups:
        tokens = packing.lay_out([rows[place] for place in group], packing.PADDING_FREE, True).tokens
        assert tokens <= most or len(group) == 1
    assert len(groups) == {1: 9, 1000: 1}.get(most, len(groups))
    assert plan([], most) == []


def test_sharing_needs_fewer_passes() -> None:
    rows = [item(f"{n}", [*SYSTEM, n], [n]) for n in range(8)]
    assert len(plan(rows, 48)) == 1
    assert len(packing.plan([len(row) for row in rows], 48, packing.PADDING_FREE)) == 8


def test_pieces_are_joined_to_whole_rows_and_gradients_find_their_way() -> None:
    rows = [item("1", SYSTEM, [1, 2]), item("2", [*SYSTEM, 1, 2, 3], [4]), item("3", [*SYSTEM, 9], [8])]
    found = spans(rows)
    pieces = [row.input_ids[span.borrowed :].double().requires_grad_() for row, span in zip(rows, found, strict=True)]
    whole = joined(pieces, found, 0)
    assert [part.tolist() for part in whole] == [row.input_ids.tolist() for row in rows]
    torch.cat(whole).sum().backward()
    n = len(SYSTEM)
    assert pieces[0].grad is not None and pieces[0].grad.tolist() == [3.0] * n + [2.0, 2.0]
    assert all(part.grad is not None and part.grad.tolist() == [1.0] * len(part) for part in pieces[1:])


def test_whole_rows_stay_as_they_are() -> None:
    pieces = [torch.arange(3), torch.arange(5)]
    assert all(a is b for a, b in zip(joined(pieces, prefixes.whole([3, 5]), 0), pieces, strict=True))
