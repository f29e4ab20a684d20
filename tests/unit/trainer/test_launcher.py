"""The parent of a crew: the end of one is the end of all, as itself; nothing outlives it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.trainer import together
from trainer import launcher, process

MEET = 'me = crew.joined("cpu")\n(folder / f"joined{rank}").touch()\n'
WAIT = MEET + "me.barrier()\ntime.sleep(60)"


def wait_until_joined(crew: together.Together) -> list[dict[str, Any]]:
    """The identities of the processes, once they have met."""
    pids = crew.pids()
    deadline = time.monotonic() + together.DEADLINE_SECONDS
    while not all((crew.folder / f"joined{rank}").exists() for rank in range(crew.size)):
        assert time.monotonic() < deadline and crew.launcher.poll() is None
        time.sleep(0.05)
    return [process.identity(pid) for pid in pids]


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, "signal SIGKILL"),
        ("os._exit(3)", 3, "exit code 3"),
    ],
)
def test_the_end_of_one_is_the_end_of_all(
    tmp_path: Path, is_gone: Callable[..., bool], end: str, code: int, words: str
) -> None:
    outcome = together.run(tmp_path, f"{MEET}if me.rank == 1: {end}\nme.barrier()")
    assert outcome.code == code, outcome.errors
    assert outcome.notes == [
        f"process 2 of 2 (pid {outcome.pids[1]}) ended first, by {words}; so the others were ended"
    ]  # fmt: skip
    assert all(is_gone(process.identity(pid)) for pid in outcome.pids)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == set(), "its private folder is removed"


def test_one_that_is_left_alone_says_that_and_nothing_of_its_own(tmp_path: Path) -> None:
    outcome = together.run(tmp_path, f"{MEET}if me.rank == 1: os._exit(3)\nsignal.signal(signal.SIGTERM, "
                           "signal.SIG_IGN)\nme.barrier()")  # fmt: skip
    kind, sentence = outcome.told[0]["error"]
    assert kind == "PeerGone" and sentence.startswith("process 1 of 2 was left alone at a barrier (")
    assert outcome.code == 3


def test_sigterm_reaches_all_and_their_end_is_waited_for(tmp_path: Path) -> None:
    lines = """def end(*_):
    time.sleep(1)
    (folder / f"end{rank}").touch()
    os._exit(143)
signal.signal(signal.SIGTERM, end)
"""
    crew = together.start(tmp_path, lines + WAIT)
    wait_until_joined(crew)
    os.killpg(crew.launcher.pid, signal.SIGTERM)
    assert crew.end().code == 143
    assert all((tmp_path / f"end{rank}").exists() for rank in (0, 1))


def test_a_launcher_that_is_killed_leaves_nobody(tmp_path: Path, is_gone: Callable[..., bool]) -> None:
    crew = together.start(tmp_path, f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{WAIT}")
    members = wait_until_joined(crew)
    crew.launcher.kill()
    assert all(is_gone(who) for who in members)
    crew.launcher.communicate()
    (left,) = tmp_path.glob("stagegate-crew-*")
    other = tmp_path / f"stagegate-crew-{os.getpid()}-x"  # of a launcher that runs
    other.mkdir()
    assert together.run(tmp_path, "pass").code == 0
    assert not left.exists() and other.exists(), "the next one clears up behind it"


def test_a_process_whose_launcher_is_gone_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "die_with_parent", lambda: None)
    monkeypatch.setenv(launcher.PARENT_VARIABLE, str(os.getppid()))
    launcher.stay_with_parent()
    monkeypatch.setenv(launcher.PARENT_VARIABLE, str(os.getpid()))
    with pytest.raises(SystemExit, match="is gone"):
        launcher.stay_with_parent()


def test_who_was_ended_by_torchrun_ended_nobody() -> None:
    def failure(code: int, moment: int) -> Any:
        return SimpleNamespace(exitcode=code, timestamp=moment, pid=100 - code)

    assert launcher.culprit({0: failure(-15, 5), 1: failure(-9, 5)})[:2] == (1, -9)
    assert launcher.culprit({0: failure(-9, 35), 1: failure(1, 5)})[:2] == (1, 1)
    assert launcher.culprit({0: failure(-15, 4), 1: failure(-15, 5)})[:2] == (0, -15)


def test_without_a_place_to_meet_the_stage_fails_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(**_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(process, "die_with_parent", lambda: None)
    monkeypatch.setattr(launcher.tempfile, "mkdtemp", full)
    assert launcher.main(["never run"], 2, 1) == 1
    assert json.loads(capfd.readouterr().out) == {
        "event": "failed", "kind": "HostUnfit",
        "message": "the processes have no place to meet: No space left on device; make room in the temporary folder",
    }  # fmt: skip
