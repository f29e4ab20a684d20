"""The lines between the arriving side and whoever reaches the host, and those that people see."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer import courier
from trainer.courier import Lost, Pipe, Progress, Refused
from trainer.errors import Interrupted


class Ends:
    """A pipe courier and its other end."""

    def __init__(self) -> None:
        replies, self.to_side = os.pipe()
        self.from_side, requests = os.pipe()
        self.descriptors = [replies, requests, self.to_side, self.from_side]
        self.pipe = Pipe(replies, requests)
        self.incoming = os.fdopen(os.dup(self.from_side), encoding="utf-8")

    def reply(self, message: dict[str, Any]) -> None:
        os.write(self.to_side, json.dumps(message).encode() + b"\n")

    def asked(self) -> dict[str, Any]:
        return dict(json.loads(self.incoming.readline()))

    def close(self, *descriptors: int) -> None:
        for descriptor in descriptors or self.descriptors:
            os.close(descriptor)
            self.descriptors.remove(descriptor)


@pytest.fixture
def ends() -> Iterator[Ends]:
    found = Ends()
    yield found
    found.incoming.close()
    found.close(*list(found.descriptors))


def test_a_command_is_asked_for_and_its_answer_returned(ends: Ends) -> None:
    ends.reply({"ok": True, "answer": {"export_id": "x"}})
    assert ends.pipe.run(["collect", "--json"]) == {"export_id": "x"}
    assert ends.asked() == {"run": ["collect", "--json"]}


@pytest.mark.parametrize("answer", [None, [], "x"])
def test_an_answer_that_is_no_object_counts_as_empty(ends: Ends, answer: Any) -> None:
    ends.reply({"ok": True, "answer": answer})
    assert ends.pipe.run(["collect"]) == {}


def test_a_lost_line_and_a_refusal_are_told_apart(ends: Ends, tmp_path: Path) -> None:
    ends.reply({"ok": False, "lost": True})
    with pytest.raises(Lost):
        ends.pipe.fetch("/there", tmp_path / "here", 10, lambda: None)
    assert ends.asked() == {"fetch": {"source": "/there", "target": str(tmp_path / "here"), "limit_bytes": 10}}
    ends.reply({"ok": False, "lost": False, "reason": "no such file"})
    with pytest.raises(Refused, match="no such file"):
        ends.pipe.fetch("/there", tmp_path / "here", 10, lambda: None)


def test_while_a_file_arrives_it_is_looked_at(ends: Ends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier, "_TICK_SECONDS", 0.01)
    looked = threading.Event()
    answering = threading.Thread(target=lambda: (looked.wait(60), ends.reply({"ok": True})))
    answering.start()
    ends.pipe.fetch("/there", tmp_path / "here", 10, looked.set)
    answering.join()
    assert looked.is_set()


@pytest.mark.parametrize("grows", [False, True])
def test_a_transfer_that_stands_still_is_stopped(
    ends: Ends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grows: bool
) -> None:
    monkeypatch.setattr(courier, "_TICK_SECONDS", 0.01)
    target, clock = tmp_path / "here", [0.0]
    monkeypatch.setattr(courier.time, "monotonic", lambda: clock[0])

    def tick() -> None:
        clock[0] += 40.0
        if grows:
            with target.open("ab") as stream:
                stream.write(b"x")
        if clock[0] > 1000:
            ends.reply({"ok": True})

    target.touch()
    ends.pipe.fetch("/there", target, 10, tick)
    assert "fetch" in ends.asked()
    ends.close(*list(ends.descriptors))
    assert ('{"stop": true}' in ends.incoming.read()) is not grows


def test_without_the_other_end_it_says_what_is_kept(ends: Ends) -> None:
    ends.close(ends.to_side)
    with pytest.raises(Interrupted, match="the same command goes on with what has arrived"):
        ends.pipe.run(["collect"])


def test_nobody_listens_any_more(ends: Ends) -> None:
    ends.incoming.close()
    ends.close(ends.from_side)
    with pytest.raises(Interrupted, match="was interrupted"):
        ends.pipe.say(["x"])


def test_progress_is_shown_now_and_then_and_counts_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress(said.extend, 1034 << 20)
    for seconds, under_way in ((4, 300), (5, 400), (6, 410), (9, 500)):
        now[0] = float(seconds)
        progress.show(under_way << 20)
    progress.arrived(512 << 20)
    now[0] = 10.0
    progress.show(88 << 20)
    assert said == ["collect: 400 of 1,034 MiB, 80 MiB/s", "collect: 600 of 1,034 MiB, 60 MiB/s"]


def test_what_was_there_before_is_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress(said.extend, 200 << 20)
    progress.known(100 << 20)
    now[0] = 10.0
    progress.show(50 << 20)
    assert said == ["collect: 150 of 200 MiB, 5 MiB/s"]
