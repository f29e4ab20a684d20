"""What processes share and agree on: one alone, and two that really run, joined by gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.trainer import together
from trainer import crew
from trainer.crew import ALONE, Crew, PeerGone, of_rank
from trainer.errors import TrainingFailed


def member(rank: int, size: int) -> Crew:
    found = Crew()
    found.rank, found.size = rank, size
    return found


def test_one_alone_has_everything_and_agrees_with_itself() -> None:
    assert (ALONE.rank, ALONE.size, ALONE.is_first, ALONE.name) == (0, 1, True, "process 1 of 1")
    assert ALONE.share("abc") == ["a", "b", "c"]
    assert ALONE.any(True) is True and ALONE.any(False) is False
    assert ALONE.gather(5) == [5] and ALONE.broadcast("x") == "x" and ALONE.once(lambda: 7) == 7
    assert ALONE.in_shares([1, 2, 3], lambda part: [value * 2 for value in part]) == [2, 4, 6]
    assert ALONE.ask(lambda share, times: [item * times for item in share], [1, 2], 3) == [3, 6]
    ALONE.let_go()
    numbers = [1.0]
    ALONE.add_up([numbers])
    assert ALONE.one_by_one(lambda: 9) == 9
    with pytest.raises(RuntimeError, match="/gloo/"), ALONE.in_step():
        raise RuntimeError("/gloo/")
    ALONE.spread([numbers])
    ALONE.barrier()
    ALONE.leave()
    assert numbers == [1.0]


@pytest.mark.parametrize(("count", "size"), [(0, 2), (1, 2), (5, 2), (6, 3), (2, 5)])
def test_the_shares_are_all_items_each_of_them_once(count: int, size: int) -> None:
    shares = [member(rank, size).share(range(count)) for rank in range(size)]
    assert sorted(item for share in shares for item in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1", "RANK": "0"}, {"WORLD_SIZE": "4"}])
def test_without_torchrun_there_is_nobody_to_join(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert crew.joined("cpu") is ALONE


def test_being_alone_needs_no_torch() -> None:
    code = "import sys; from trainer import crew; crew.joined('cpu').barrier(); sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(together.REPOSITORY)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_people_count_processes_from_one() -> None:
    assert of_rank(0, 2) == "process 1 of 2"


EVERYTHING = """
me = crew.joined("cpu")
import torch
whole, half = torch.arange(3.0) + me.rank, torch.full((2, 2), me.rank + 0.5, dtype=torch.float64)
part = torch.zeros(4)[::2]
me.add_up([whole, part, half])
first = torch.tensor([me.rank + 5.0, 1.0])
me.spread([first])
me.barrier()
told.update(
    who=[me.rank, me.size, me.is_first, me.name], sums=[whole.tolist(), half.tolist(), part.tolist()],
    first=first.tolist(), any=[me.any(me.rank == 1), me.any(False)], all=me.gather({"rank": me.rank}),
    word=me.broadcast("first" if me.is_first else "not this"), once=me.once(lambda: rank + "!"),
    ordered=me.in_shares(list("abcde"), lambda part: [f"{item}{me.rank}" for item in part]),
)
def found():
    if me.is_first:
        time.sleep(0.3)
        (folder / "made").touch()
    return [me.rank, (folder / "made").exists()]
told["turns"] = me.gather(me.in_turn(found))
def alone():
    (folder / "inside").mkdir()  # an error where another process is in it
    time.sleep(0.2)
    (folder / "inside").rmdir()
    return rank
told["one by one"] = me.gather(me.one_by_one(alone))
def work(share, mark):
    return [f"{item}{mark}{me.rank}" for item in share]
if me.is_first:
    answers = [me.ask(work, list("xyz"), "-"), me.ask(work, ["w"], "+")]
    me.let_go()
else:
    me.serve(work)
    answers = None
told["asked"] = me.gather(answers)[0]
told["left"] = [name for name in crew.TORCHRUN_VARIABLES if name in os.environ]
me.leave()
"""


def test_two_share_and_agree(tmp_path: Path) -> None:
    outcome = together.run(tmp_path, EVERYTHING)
    assert outcome.code == 0, outcome.errors
    one, two = outcome.told
    assert (one.pop("who"), two.pop("who")) == ([0, 2, True, "process 1 of 2"], [1, 2, False, "process 2 of 2"])
    assert one == two
    assert one["sums"] == [[1.0, 3.0, 5.0], [[2.0, 2.0], [2.0, 2.0]], [0.0, 0.0]]
    assert one["first"] == [5.0, 1.0] and one["any"] == [True, False]
    assert one["asked"] == [["x-0", "y-1", "z-0"], ["w+0"]], "only the first one knew what was asked"
    assert one["left"] == [], "no library takes itself for one of several"
    assert one["turns"] == [[0, True], [1, True]], "the second one came when the first had made it"
    assert one["all"] == [{"rank": 0}, {"rank": 1}] and one["one by one"] == ["0", "1"]
    assert (one["word"], one["once"], one["ordered"]) == ("first", "0!", ["a0", "b1", "c0", "d1", "e0"])


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("[/src/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:27027: Connection reset by peer.",
         PeerGone, "process 1 of 2 was left alone in a pass of the model ([/src/gloo/"),
        ("[/src/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 3600000ms for recv operation to complete",
         TrainingFailed, "one of 2 processes did not come to a pass of the model within 3600 s; look at the log for "),
        ("mat1 and mat2 shapes cannot be multiplied", RuntimeError, "mat1 and mat2"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", RuntimeError, "CUDA out of memory"),
    ],
)  # fmt: skip
def test_only_an_exchange_that_fails_is_the_fault_of_others(said: str, kind: type[Exception], words: str) -> None:
    found = crew.Joined.__new__(crew.Joined)  # as one that has joined: what it says needs no other
    found.rank, found.size = 0, 2
    with pytest.raises(kind) as caught, found.in_step():
        raise RuntimeError(said)
    assert type(caught.value) is kind and str(caught.value).startswith(words)


LATE = """
crew.TOGETHER_SECONDS = 2.0
me = crew.joined("cpu")
if me.rank == 1:
    time.sleep(6)
    os._exit(0)
me.any(False)
"""
ABSENT = """
crew.JOIN_SECONDS = 1.0
if rank == "1":
    time.sleep(6)
    os._exit(0)
crew.joined("cpu")
"""


@pytest.mark.parametrize(("lines", "what"), [(LATE, "a step's end within 2 s"), (ABSENT, "the meeting within 1 s")])
def test_who_does_not_come_is_named(tmp_path: Path, lines: str, what: str) -> None:
    outcome = together.run(tmp_path, lines)
    assert outcome.told[0]["error"] == [
        "TrainingFailed", f"process 2 of 2 did not come to {what}; look at the log for what holds it up"
    ]  # fmt: skip


def test_a_patient_wait_is_no_late_one(tmp_path: Path) -> None:
    lines = """
crew.TOGETHER_SECONDS = 2.0
me = crew.joined("cpu")
told["once"] = me.once(lambda: time.sleep(4) or "downloaded")
me.leave()
"""
    outcome = together.run(tmp_path, lines)
    assert [told.get("once") for told in outcome.told] == ["downloaded", "downloaded"], outcome.errors
