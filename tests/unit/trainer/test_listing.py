"""The listing: what a host may say it has, and everything else."""

from __future__ import annotations

import hashlib

import pytest

from trainer import listing
from trainer.errors import Interrupted
from trainer.listing import Caps, Entry

HEX = "0" * 64
CAPS = Caps(1 << 40, 1 << 41)
SOUND = [Entry("logs/a.log", 5, HEX), Entry("state/plan.json", 7, "1" * 64)]


def text_of(*entries: Entry) -> bytes:
    return listing.render(entries).encode()


def test_what_is_written_is_read_by_both_sides() -> None:
    text = text_of(*reversed(SOUND))
    assert text == f"{HEX}  5  logs/a.log\n{'1' * 64}  7  state/plan.json\n".encode()
    assert listing.parse(text, CAPS) == SOUND == listing.parse_own(text.decode())
    assert listing.id_of(text) == hashlib.sha256(text).hexdigest()


def named(name: str) -> bytes:
    return text_of(*SOUND, Entry(name, 1, HEX))


def with_line(line: str) -> bytes:
    return text_of(*SOUND) + line.encode() + b"\n"


HOSTILE = {
    "absolute": named("/tmp/x"),
    "parent": named("logs/../../x"),
    "parent first": named("../x"),
    "dot": named("logs/./x"),
    "hidden": named("logs/.x"),
    "the marker of copies": named(".collected.json"),
    "another folder": named("cache/x.json"),
    "top level": named("logs"),
    "empty name": named("logs//x"),
    "folder": named("logs/x/"),
    "file and folder of one name": named("logs/a.log/x"),
    "file and folder that differ in case": named("logs/A.LOG/x"),
    "files that differ in case": named("logs/A.log"),
    "folders that differ in case": text_of(Entry("adapter/A/x", 1, HEX), Entry("adapter/a/y", 1, HEX)),
    "space": named("logs/a b"),
    "newline": named("logs/a\nb"),
    "backslash": named("logs/a\\b"),
    "escape": named("logs/\x1b[31m"),
    "umlaut": named("logs/ä"),
    "name of 256 bytes": named(f"logs/{'a' * 256}"),
    "twice": text_of(*SOUND, SOUND[0]),
    "garbage": with_line("garbage"),
    "short hash": with_line(f"{'0' * 40}  1  logs/x"),
    "capital hash": with_line(f"{'A' * 64}  1  logs/x"),
    "no size": with_line(f"{HEX}  logs/x"),
    "negative size": with_line(f"{HEX}  -1  logs/x"),
    "size with a zero before it": with_line(f"{HEX}  01  logs/x"),
    "size beyond counting": with_line(f"{HEX}  {'9' * 400}  logs/x"),
    "empty line": with_line(""),
    "nothing": b"",
    "byte order mark": b"\xef\xbb\xbf" + text_of(*SOUND),
    "carriage returns": text_of(*SOUND).replace(b"\n", b"\r\n"),
    "no last newline": text_of(*SOUND).rstrip(b"\n"),
    "another order": b"".join(reversed(text_of(*SOUND).splitlines(keepends=True))),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_listing_is_refused_in_one_plain_sentence(kind: str) -> None:
    with pytest.raises(Interrupted, match="nothing was taken over") as caught:
        listing.parse(HOSTILE[kind], CAPS)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


HARMLESS = {
    "deep": named("adapter/adapter_style/a/b/c.json"),
    "dots and dashes": named("logs/a-b.c_d..e"),
    "beside a file of a longer name": named("logs/a.logx"),
    "one folder spelt once": named("logs/sub/x"),
    "name of 255 bytes": named(f"logs/{'a' * 255}"),
    "empty file": text_of(Entry("logs/x", 0, HEX)),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_the_harmless_twin_of_each_is_read(kind: str) -> None:
    assert text_of(*listing.parse(HARMLESS[kind], CAPS)) == HARMLESS[kind]


def test_sizes_are_capped_each_and_together() -> None:
    entries = [Entry("logs/a", 2 << 20, HEX), Entry("logs/b", 1 << 20, HEX)]
    assert listing.parse(text_of(*entries), Caps(2 << 20, 3 << 20)) == entries
    with pytest.raises(Interrupted, match="'logs/a' with 2 MiB, more than 1 MiB; raise artifacts_max_file_bytes"):
        listing.parse(text_of(*entries), Caps(1 << 20, 3 << 20))
    with pytest.raises(Interrupted, match="lists 3 MiB in 2 files, more than 2 MiB; raise artifacts_max_total_bytes"):
        listing.parse(text_of(*entries), Caps(2 << 20, 2 << 20))


@pytest.mark.parametrize("name", ["state/style.json", "logs/issues.jsonl", "adapter/a/eval_report_style.json"])
def test_what_is_parsed_here_is_capped_whatever_the_caps_are(name: str) -> None:
    listing.parse(text_of(Entry(name, 32 << 20, HEX)), CAPS)
    listing.parse(text_of(Entry("logs/train.log", 33 << 20, HEX)), CAPS)
    with pytest.raises(Interrupted, match="with 33 MiB, more than 32 MiB"):
        listing.parse(text_of(Entry(name, 33 << 20, HEX)), CAPS)


def test_the_number_of_files_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MOST_FILES", 2)
    assert listing.parse(text_of(*SOUND), CAPS) == SOUND
    with pytest.raises(Interrupted, match="more than 2 files"):
        listing.parse(named("logs/more"), CAPS)


def test_sizes_are_shown_for_people() -> None:
    assert [listing.mib(size) for size in (0, 1023, 1 << 20, 1 << 30)] == [
        "0 bytes",
        "1,023 bytes",
        "1 MiB",
        "1,024 MiB",
    ]
