"""Names seen before, without the names."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from trainer.seen import FIRST_SLOTS, Seen


@given(st.lists(st.text(max_size=3)))
def test_it_tells_what_a_dictionary_would(names: list[str]) -> None:
    seen, known = Seen(), dict[str, int]()
    for line, name in enumerate(names, 1):
        assert seen.first_line(name, line) == known.get(name)
        known.setdefault(name, line)


def test_it_grows_and_forgets_nothing() -> None:
    seen, count = Seen(), 5 * FIRST_SLOTS
    assert all(seen.first_line(f"row-{line}", line) is None for line in range(1, count + 1))
    assert [seen.first_line(f"row-{line}", count + 1) for line in range(1, count + 1)] == list(range(1, count + 1))


def test_it_takes_a_fraction_of_what_the_names_take() -> None:
    names = [f"a name of some length {number:09}" for number in range(50_000)]
    seen = Seen()
    tracemalloc.start()
    for line, name in enumerate(names, 1):
        seen.first_line(name, line)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held / len(names) < 64, "bytes for each name"
