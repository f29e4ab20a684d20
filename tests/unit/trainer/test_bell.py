"""An end that is asked for is heard where it does no harm."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from trainer.bell import Bell, Cancelled


@pytest.fixture
def bell() -> Iterator[Bell]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
    before = {number: signal.getsignal(number) for number in numbers}
    found = Bell()
    found.install()
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_rings_and_is_answered_where_it_is_asked_for(bell: Bell, number: int) -> None:
    bell.answer()
    os.kill(os.getpid(), number)
    assert bell.rung, "nothing was broken off"
    for _ in range(2):
        with pytest.raises(Cancelled):
            bell.answer()


def test_what_listens_is_broken_off_at_once_and_only_once(bell: Bell) -> None:
    reached = []
    with pytest.raises(Cancelled), bell.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append("behind the signal")
    assert reached == []
    os.kill(os.getpid(), signal.SIGTERM)  # a second one must not break the writing down of the first
    with pytest.raises(Cancelled), bell.listening():
        reached.append("inside")
    assert reached == []


def test_a_closed_terminal_does_not_ring(bell: Bell) -> None:
    os.kill(os.getpid(), signal.SIGHUP)
    bell.answer()
    with bell.listening():
        pass
    assert not bell.rung


def test_children_are_waited_for_whatever_was_set_before() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    others = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        Bell().install()
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGCHLD, before)
        for number, handler in others.items():
            signal.signal(number, handler)
