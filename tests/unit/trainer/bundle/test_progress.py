"""How far a long work is."""

from __future__ import annotations

import io

import pytest

from trainer.bundle.progress import COLUMNS, LINE_SECONDS, MIB, TERMINAL_SECONDS, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def run(stream: io.StringIO, steps: int, seconds: float, total: int = 1000 * MIB, what: str = "packing") -> str:
    clock = Clock()
    progress = Progress(what, stream, clock)
    for step in range(1, steps + 1):
        clock.seconds += seconds
        progress(total * step // steps, total)
    progress.close()
    return stream.getvalue()


def test_a_terminal_sees_one_line_that_goes_away() -> None:
    text = run(Terminal(), 10, TERMINAL_SECONDS)
    rows = text.split("\r")
    assert "\n" not in text and rows[0] == "" and rows[-1] == "" and rows[-2].strip() == ""
    assert rows[5].strip() == "packing: 500 of 1000 MiB, 500 MiB/s, 1 s left"
    assert all(len(row) <= COLUMNS < 80 for row in rows)


def test_a_terminal_is_not_written_to_all_the_time() -> None:
    assert run(Terminal(), 1000, TERMINAL_SECONDS / 100).count("\r") < 15


def test_elsewhere_a_line_comes_now_and_then() -> None:
    lines = run(io.StringIO(), 100, LINE_SECONDS / 10).splitlines()
    assert 9 <= len(lines) <= 11 and lines[0].startswith("packing: 100 of 1000 MiB")


def test_a_short_work_says_nothing() -> None:
    assert run(io.StringIO(), 10, LINE_SECONDS / 20) == ""
    assert run(Terminal(), 10, TERMINAL_SECONDS / 20) == ""


@pytest.mark.parametrize("total", [0, 1, 1 << 60])
def test_any_size_fits_the_line(total: int) -> None:
    assert all(len(row) <= COLUMNS for row in run(Terminal(), 3, 1.0, total, what="verifying " * 10).split("\r"))


def test_a_reader_that_went_away_does_not_end_the_work() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    assert run(Closed(), 3, 60.0) == ""
