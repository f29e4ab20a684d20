"""The action plugin trainer_start: how often it launches, whatever happens to the connection."""

from __future__ import annotations

from typing import Any

import pytest
from plugin_files import load

plugin = load("trainer_start")
SUBMITTED = {"answer": {"plan": {"plan_id": "p1", "status": "submitted"}, "running": False}}
RUNNING = {"answer": {"plan": {"plan_id": "p1", "status": "running"}, "running": True}}
LOCKED = {"answer": {"plan": {"plan_id": "p1", "status": "submitted"}, "running": True}}
ENDED = {"answer": {"plan": {"plan_id": "p1", "status": "ended"}, "running": False}}
OTHER = {"answer": {"plan": {"plan_id": "p2", "status": "running"}, "running": True}}
FINE, LOST = {"interrupted": False}, {"interrupted": True}


class Scripted(plugin.ActionModule):  # type: ignore[misc, name-defined]
    """The plugin with scripted launches and answers instead of a host."""

    def __init__(self, launches: list[Any], answers: list[Any]) -> None:
        self._args = {"plan": "p1", "start_timeout_seconds": 3, "reconnect_timeout_seconds": 60}
        self._launches, self._answers = launches, answers
        self.launched, self.cleaned = 0, 0

    def _launch(self) -> Any:
        self.launched += 1
        return self._launches.pop(0)

    def _ask(self, *words: str) -> Any:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]

    def _clean_up(self) -> None:
        self.cleaned += 1


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(plugin.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(plugin.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))


@pytest.mark.parametrize("answers", [[RUNNING], [SUBMITTED, RUNNING], [SUBMITTED, LOCKED], [ENDED]])
@pytest.mark.parametrize("launch", [FINE, LOST])
def test_plan_that_began_is_launched_once(launch: Any, answers: list[Any]) -> None:
    action = Scripted([launch], list(answers))
    assert action._start() == {"changed": True, "launches": 1}
    assert (action.launched, action.cleaned) == (1, 1)


def test_plan_that_nobody_runs_after_a_lost_connection_is_launched_again() -> None:
    action = Scripted([LOST, FINE], [SUBMITTED] * 4 + [RUNNING])
    assert action._start()["launches"] == 2


def test_launch_that_was_answered_is_not_repeated() -> None:
    action = Scripted([FINE], [SUBMITTED])
    ended = action._start()
    assert (ended["trainer_exit_code"], action.launched, action.cleaned) == (7, 1, 0)
    assert "did not start" in ended["msg"]


def test_another_plan_in_its_place_is_named() -> None:
    assert "plan p2 took its place" in Scripted([FINE], [OTHER])._start()["msg"]


def test_host_that_stays_away_ends_it() -> None:
    gone = {"failed": True, "msg": "box port 22 refuses", "trainer_exit_code": 4}
    action = Scripted([LOST], [gone])
    assert action._start() == gone
    assert action.launched == 1


def test_launch_that_cannot_be_made_ends_it() -> None:
    broken = {"failed": True, "msg": "no space left", "trainer_exit_code": 4}
    assert Scripted([broken], [])._start() == broken
