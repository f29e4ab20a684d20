"""The way home: everything arrives unchanged, what was cut goes on, and what a host lies about is refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.road import MIB, Road, exported, kill, large, tree
from trainer import arrival, artifacts, landing, listing, publication
from trainer.arrival import Tail
from trainer.errors import InputError, Interrupted
from trainer.listing import Caps

LOG = "logs/train_style_20261122T101010.log"
WEIGHTS = "adapter/adapter_style/adapter_model.safetensors"


@pytest.fixture
def host(line: Any) -> Any:
    """A host on which a whole plan has ended."""
    line.record_plan(outcomes={"style": {"status": "passed", "message": "the gate is open", "exit_code": 0}})
    line.finish()
    return line


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces and unsure ends of a size that a test can write often."""
    monkeypatch.setattr(landing, "UNSURE_BYTES", 2 * MIB)
    monkeypatch.setattr(arrival, "BATCH_BYTES", 10 * MIB)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home" / "outputs"


def test_everything_comes_home_unchanged(host: Any, home: Path) -> None:
    road = Road(host.layout)
    received = road.bring(home)
    assert tree(home) == exported(host.layout) and received["changed"]
    assert [text.split(":")[0] for text in received["lines"]] == ["Summary", "Adapters", "Best model"]
    summary = received["lines"][0].removeprefix("Summary: ")
    assert summary.startswith(str(home)) and Path(summary).is_file()
    assert publication.imported(home) == {name: received[name] for name in ("export_id", "lines")}
    assert sorted(p.name for p in home.iterdir() if p.name.startswith(".")) == [".collected.json"]
    assert not list(host.layout.cache.glob("export_*/")), "the host is as it was"
    assert [name for name, _ in road.fetched] == ["listing", f"piece-{road.fetched[1][0][6:]}"], "one batch"


def test_a_second_collect_fetches_only_what_is_new(host: Any, home: Path) -> None:
    path = large(host.layout, 9)
    Road(host.layout).bring(home)
    inode = (home / WEIGHTS).stat().st_ino
    (home / "adapter" / "adapter_writing" / "stale.json").write_text("of an earlier adapter")
    (home / "own.txt").write_text("the user's")
    host.finish("writing", status="missed")
    road = Road(host.layout)
    received = road.bring(home)
    assert publication.imported(home)["export_id"] == received["export_id"]
    assert json.loads((home / "state" / "writing.json").read_text())["status"] == "missed"
    assert not (home / "adapter" / "adapter_writing" / "stale.json").exists(), "an adapter is replaced as a whole"
    assert (home / "own.txt").read_text() == "the user's" and len(list((home / "training_sync").iterdir())) == 2
    assert road.bytes < MIB < path.stat().st_size and (home / WEIGHTS).stat().st_ino == inode
    assert not list(home.rglob(".*.old"))


def test_a_file_that_was_damaged_at_home_is_brought_again(host: Any, home: Path) -> None:
    received = Road(host.layout).bring(home)
    (home / LOG).write_text("step 2\n")  # as long as it was
    assert publication.imported(home)["export_id"] == ""
    road = Road(host.layout)
    assert road.bring(home)["export_id"] == received["export_id"]
    assert (home / LOG).read_text() == "step 1\n" and len(road.fetched) <= 2


def test_two_equal_files_arrive_once_and_stay_two(host: Any, home: Path) -> None:
    large(host.layout, 9)
    large(host.layout, 9, "adapter/adapter_writing/adapter_model.safetensors")
    road = Road(host.layout)
    road.bring(home)
    assert road.bytes < 10 * MIB and tree(home) == exported(host.layout)
    inodes = [p.stat().st_ino for p in home.rglob("*") if p.is_file()]
    assert len(set(inodes)) == len(inodes), "a change of one must not change another"


# --- cut lines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [[13 * MIB], [MIB, 20 * MIB, 5 * MIB], [0, 0, 30 * MIB - 1]])
def test_a_cut_file_goes_on_behind_what_has_arrived(host: Any, home: Path, cuts: list[int]) -> None:
    large(host.layout, 30)
    road, left = Road(host.layout), list(cuts)

    def cut(source: str) -> None:
        begun = any(name == "adapter_model.safetensors" for name, _ in road.fetched)
        if left and (begun or source.endswith(WEIGHTS)):
            road.cuts = [left.pop(0)]

    road.before_fetch = cut
    road.bring(home)
    assert tree(home) == exported(host.layout) and not left
    assert road.bytes < (30 + 3 * len(cuts)) * MIB, "at most the unsure end comes twice"


def test_a_cut_batch_goes_on_with_what_had_not_arrived(host: Any, home: Path) -> None:
    for number in range(20):
        (host.layout.logs / f"more_{number}.log").write_bytes(bytes([number]) * 100_000)
    road = Road(host.layout)
    order = road.order(home)
    road.before_fetch = lambda source: road.cuts.append(1_000_000) if "piece" in source and not road.cuts else None
    arrival.receive(order, road)
    assert tree(home) == exported(host.layout)
    assert len(road.fetched) >= 3 and road.bytes < 2_500_000


@pytest.mark.parametrize("after", [MIB, 12 * MIB, 29 * MIB])
def test_a_killed_controller_goes_on_with_what_has_arrived(host: Any, home: Path, after: int) -> None:
    large(host.layout, 30)
    road = Road(host.layout)
    kill(road, home, after)
    assert tree(home) == {} and publication.imported(home)["export_id"] == ""
    again = Road(host.layout)
    again.bring(home)
    assert tree(home) == exported(host.layout)
    assert again.bytes < (30 + 3) * MIB - after
    assert sorted(p.name for p in home.iterdir() if p.name.startswith(".")) == [".collected.json"]


def test_verified_files_are_not_fetched_again_and_damaged_ones_are(host: Any, home: Path) -> None:
    large(host.layout, 20)
    kill(Road(host.layout), home, 19 * MIB)
    objects = home / ".incoming" / "objects"
    log = objects / hashlib.sha256(b"step 1\n").hexdigest()
    assert log.read_bytes() == b"step 1\n"
    log.write_bytes(b"step 9\n")  # a disk that lost power
    again = Road(host.layout)
    again.bring(home)
    assert tree(home) == exported(host.layout)
    assert [size for name, size in again.fetched if name.startswith("piece")][0] == 7, "the one that was damaged"


def test_a_beginning_that_is_not_the_hosts_is_thrown_away(host: Any, home: Path) -> None:
    large(host.layout, 40)
    kill(Road(host.layout), home, 30 * MIB)
    (part,) = (home / ".incoming" / "parts").glob("*.got")
    part.write_bytes(b"x" * 30 * MIB)
    road = Road(host.layout)
    road.bring(home)
    assert tree(home) == exported(host.layout) and road.bytes > 40 * MIB


def test_a_large_log_that_grows_comes_as_it_was_listed(host: Any, home: Path) -> None:
    log = large(host.layout, 9, "logs/train_long.log")
    was = log.read_bytes()
    road = Road(host.layout)
    order = road.order(home)
    with log.open("ab") as stream:
        stream.write(b"more")
    assert arrival.receive(order, road)["export_id"] == order.export_id
    assert (home / "logs" / "train_long.log").read_bytes() == was


def test_a_stage_that_ends_between_listing_and_fetch_is_listed_anew(host: Any, home: Path) -> None:
    road = Road(host.layout)
    order = road.order(home)
    host.finish("style", status="missed")
    (host.layout.outputs / WEIGHTS).write_text("trained again")
    received = arrival.receive(order, road)
    assert received["export_id"] != order.export_id and (home / WEIGHTS).read_text() == "trained again"
    there = {name: content for name, content in exported(host.layout).items() if not name.startswith("training_sync")}
    assert there.items() <= tree(home).items()
    assert [line for line in road.said if "changed on the host meanwhile; asking for a new listing" in line]


# --- hosts that lie -------------------------------------------------------------------------------------------------


def swapped(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


LIES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another content": (lambda path: path.write_bytes(b"x" * path.stat().st_size), "arrived as"),
    "longer": (lambda path: path.open("ab").write(b"x" * MIB), "arrived with more than was listed"),
    "shorter": (lambda path: os.truncate(path, 8 * MIB), "arrived with 8388608 bytes of 9437184"),
    "a fifo": (lambda path: (path.unlink(), os.mkfifo(path)), "arrived not at all"),
    "a link": (lambda path: (path.unlink(), path.symlink_to("/etc/passwd")), "arrived with .* bytes of"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "arrived not at all"),
    "nothing": (lambda path: path.unlink(), "arrived not at all"),
}


@pytest.mark.parametrize("kind", [*LIES, "the truth"])
def test_a_host_that_sends_something_else_than_it_lists_is_refused(
    host: Any, home: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = large(host.layout, 9)
    answer = artifacts.collect(host.layout)
    road = Road(host.layout)
    monkeypatch.setattr(artifacts, "collect", lambda layout, anew: answer)  # it insists
    if kind == "the truth":
        road.bring(home, export_id=answer["export_id"])
        assert tree(home) == exported(host.layout)
        return
    change, words = LIES[kind]
    change(path)
    with pytest.raises(Interrupted, match=f"{WEIGHTS} is listed as .* {words}") as caught:
        road.bring(home, export_id=answer["export_id"])
    assert "\n" not in str(caught.value) and "nothing was taken over" in str(caught.value)
    assert tree(home) == {} and not (home / ".collected.json").exists()
    assert max(p.stat().st_size for p in home.rglob("*")) <= 9 * MIB, "nothing of the lie is kept"


def test_a_piece_that_is_not_what_was_listed_is_refused(host: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = artifacts.collect(host.layout)
    monkeypatch.setattr(artifacts, "collect", lambda layout, anew: answer)
    real = artifacts.export

    def lying(*words: Any) -> dict[str, Any]:
        found = real(*words)
        piece = host.layout.cache / f"export_{answer['export_id']}" / f"piece-{words[-1]}"
        piece.write_bytes(piece.read_bytes().replace(b"step 1", b"step 9"))
        return found

    monkeypatch.setattr(artifacts, "export", lying)
    with pytest.raises(Interrupted, match="is listed as .* and arrived as .*; nothing was taken over"):
        Road(host.layout).bring(home, export_id=answer["export_id"])
    assert tree(home) == {}
    monkeypatch.setattr(artifacts, "export", real)
    road = Road(host.layout)
    road.bring(home, export_id=answer["export_id"])
    assert tree(home) == exported(host.layout) and 0 < road.fetched[1][1] < 100, "only the logs had to come"


@pytest.mark.parametrize("text", [b"", b"garbage\n", b"\xff" * 100])
def test_a_listing_that_is_not_what_its_id_says_is_not_read(host: Any, home: Path, text: bytes) -> None:
    answer = artifacts.collect(host.layout)
    (host.layout.cache / f"export_{answer['export_id']}" / "listing").write_bytes(text)
    with pytest.raises(Interrupted, match="the host's listing arrived as"):
        Road(host.layout).bring(home, export_id=answer["export_id"])
    answer = artifacts.collect(host.layout)
    Road(host.layout).bring(home, export_id=answer["export_id"])


@pytest.mark.parametrize("export_id", ["", "x", "../../etc", f"{'0' * 64}\n!touch /tmp/stagegate-hostile", "0" * 63])
def test_no_path_is_made_of_an_id_that_is_none(host: Any, home: Path, export_id: str) -> None:
    road = Road(host.layout)
    order = road.order(home)
    with pytest.raises(Interrupted, match="where the id of an export belongs"):
        arrival.receive(arrival.Order(order.host_root, export_id, home, order.caps), road)
    assert road.fetched == []
    arrival.receive(order, road)


def test_an_endless_listing_is_cut_at_its_limit(host: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = artifacts.collect(host.layout)
    size = (host.layout.cache / f"export_{answer['export_id']}" / "listing").stat().st_size
    monkeypatch.setattr(arrival, "MOST_LISTING_BYTES", size)
    with pytest.raises(Interrupted, match="listing has more than"):
        Road(host.layout).bring(home, export_id=answer["export_id"])
    monkeypatch.setattr(arrival, "MOST_LISTING_BYTES", size + 1)
    Road(host.layout).bring(home, export_id=answer["export_id"])


def test_what_is_over_a_cap_is_refused_before_it_is_fetched(host: Any, home: Path) -> None:
    large(host.layout, 9)
    road = Road(host.layout)
    with pytest.raises(Interrupted, match="more than 8 MiB; raise artifacts_max_file_bytes"):
        road.bring(home, caps=Caps(8 * MIB, 1 << 40))
    assert [name for name, _ in road.fetched] == ["listing"]
    road.bring(home, caps=Caps(9 * MIB, 10 * MIB))


def test_a_full_disk_is_noticed_before_anything_is_fetched(
    host: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large(host.layout, 9)
    road, free = Road(host.layout), [70 * MIB]
    monkeypatch.setattr("trainer.landing.shutil.disk_usage", lambda folder: type("Usage", (), {"free": free[0]}))
    with pytest.raises(InputError, match=r"has 70 MiB free and collect needs 73 MiB; make room"):
        road.bring(home)
    assert [name for name, _ in road.fetched] == ["listing"]
    free[0] = 80 * MIB
    road.bring(home)


# --- whose outputs these are ----------------------------------------------------------------------------------------


def test_a_hosts_own_outputs_are_home_already_and_are_never_marked_as_a_copy(host: Any, home: Path) -> None:
    host.layout.lock.touch()
    road = Road(host.layout)
    order = road.order(host.layout.outputs)
    received = arrival.receive(order, road)
    assert not received["changed"] and not (host.layout.outputs / artifacts.COLLECTED).exists()
    assert received["lines"][0].startswith(f"Summary: {host.layout.outputs}")
    assert [name for name, _ in road.fetched] == ["listing"]
    host.finish("style", status="missed")
    with pytest.raises(InputError, match="a host trains in .* itself; name another folder"):
        arrival.receive(order, road)


def test_a_lock_without_a_plan_is_in_nobodys_way(host: Any, home: Path) -> None:
    (home / "state").mkdir(parents=True)
    (home / "state" / "supervisor.lock").touch()
    Road(host.layout).bring(home)
    host.finish("style", status="missed")
    received = Road(host.layout).bring(home)
    assert publication.imported(home)["export_id"] == received["export_id"], "a copy stays one"


# --- parts ----------------------------------------------------------------------------------------------------------


def test_a_tail_hashes_what_grows(tmp_path: Path) -> None:
    path = tmp_path / "x"
    tail = Tail(path)
    tail.read()
    for piece in (b"a" * 3, b"b" * MIB, b""):
        with path.open("ab") as stream:
            stream.write(piece)
        tail.read()
    assert tail.finish() == hashlib.sha256(path.read_bytes()).hexdigest() and tail.position == MIB + 3


def test_long_transfers_are_shown_and_short_ones_are_not(
    host: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.courier._REPORT_SECONDS", 0.0)
    road = Road(host.layout)
    road.bring(home)
    assert road.said == []
    large(host.layout, 40)
    road.bring(home)
    assert [line for line in road.said if line.startswith("collect: ") and " of 40 MiB, " in line]
    assert listing.mib(40 * MIB) == "40 MiB"
