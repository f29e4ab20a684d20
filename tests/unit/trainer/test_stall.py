"""When a worker counts as stalled: by a clock of its own, its processor time and the GPU."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.stall import StallWatch


class World:
    """A clock and a worker that stand still until they are told to move."""

    def __init__(self, limit_seconds: float = 100.0) -> None:
        self.now = 1000.0
        self.used = 7.0
        self.percent = 0
        self.asked = 0
        self.watch = StallWatch(limit_seconds, lambda: self.used, self.gpu_load, lambda: self.now)
        self.watch.look()

    def gpu_load(self) -> dict[str, Any]:
        self.asked += 1
        return {"gpu_percent": self.percent}

    def pass_time(self, seconds: float, processor_share: float = 0.0, step: float = 5.0) -> list[tuple[str, float]]:
        """What is told while time passes in small steps."""
        told = []
        end = self.now + seconds
        while self.now < end:
            self.now += step
            self.used += processor_share * step
            told += [news] if (news := self.watch.look()) else []
        return told


def test_silence_without_work_is_told_after_the_limit_and_again_while_it_lasts() -> None:
    world = World()
    world.pass_time(10.0, 1.0)
    assert world.pass_time(95.0) == []
    assert world.pass_time(210.0) == [("stalled", 100.0), ("stalled", 200.0), ("stalled", 300.0)]
    assert world.pass_time(10.0, 1.0) == [("moving", 310.0)]
    assert world.pass_time(95.0) == [] and [event for event, _ in world.pass_time(10.0)] == ["stalled"]


def test_a_report_is_a_sign_of_life() -> None:
    world = World()
    for _ in range(5):
        assert world.pass_time(90.0) == []
        world.watch.reported()
    assert [event for event, _ in world.pass_time(120.0)] == ["stalled"]
    world.watch.reported()
    assert [event for event, _ in world.pass_time(5.0)] == ["moving"]


@pytest.mark.parametrize(("share", "stalled"), [(1.0, False), (0.02, False), (0.001, True), (0.0, True)])
def test_waking_up_now_and_then_is_no_work(share: float, stalled: bool) -> None:
    assert bool(World().pass_time(500.0, share)) is stalled


def test_a_gpu_that_works_is_a_sign_of_life_and_asked_only_when_it_matters() -> None:
    world = World()
    world.percent = 90
    assert world.pass_time(500.0) == [] and world.asked > 0
    busy = World()
    busy.pass_time(500.0, 1.0)
    assert busy.asked == 0


def test_a_child_that_ended_is_a_sign_of_life() -> None:
    world = World()
    world.pass_time(90.0)
    world.used = 1.0
    assert world.pass_time(90.0) == []


def test_time_in_which_nobody_looked_does_not_count() -> None:
    world = World()
    world.pass_time(50.0)
    assert world.pass_time(86400.0, step=86400.0) == [], "the machine slept"
    assert world.pass_time(30.0) == []
    assert [event for event, _ in world.pass_time(30.0)] == ["stalled"]


def test_a_short_limit_is_looked_at_often_enough() -> None:
    assert [event for event, _ in World(1.0).pass_time(2.0, step=0.05)] == ["stalled"]
