"""Files over a line that breaks: resumed, verified, never taken for whole before they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.model_hub import NAME, blob_id, sha256
from trainer import download
from trainer.repositories import RemoteFile, SourceFailed

WEIGHTS = "model.safetensors"


@pytest.fixture
def content(model_hub: Any, online: Any) -> bytes:
    found: bytes = model_hub.commits[model_hub.branches["main"]][WEIGHTS]
    return found


def get(hub: Any, folder: Path, content: bytes, token: str | None = None, **more: Any) -> Path:
    url = f"{hub.url}/{NAME}/resolve/main/{WEIGHTS}"
    file = more.pop("file", RemoteFile(len(content), sha256(content)))
    download.fetch(folder / WEIGHTS, file, url, token, more.pop("progress", download.Progress(0, len(content))))
    return folder / WEIGHTS


def test_a_file_arrives_whole_and_leaves_nothing_beside_it(model_hub: Any, content: bytes, tmp_path: Path) -> None:
    progress = download.Progress(0, len(content))
    assert get(model_hub, tmp_path, content, progress=progress).read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]
    assert progress.there == len(content)


def test_a_broken_line_goes_on_where_it_broke(model_hub: Any, content: bytes, tmp_path: Path) -> None:
    model_hub.faults[WEIGHTS] = ["cut 1000", "503", "cut 500"]
    assert get(model_hub, tmp_path, content).read_bytes() == content
    assert [request.range for request in model_hub.asked(WEIGHTS)] == [
        "", "bytes=1000-", "bytes=1000-", "bytes=1500-",
    ]  # fmt: skip


def test_another_process_goes_on_with_what_the_first_one_left(model_hub: Any, content: bytes, tmp_path: Path) -> None:
    download.partial(tmp_path / WEIGHTS).write_bytes(content[:700])
    assert get(model_hub, tmp_path, content).read_bytes() == content
    assert [request.range for request in model_hub.asked(WEIGHTS)] == ["bytes=700-"]


def test_a_server_that_ignores_the_range_is_read_from_the_beginning(
    model_hub: Any, content: bytes, tmp_path: Path
) -> None:
    model_hub.faults[WEIGHTS] = ["cut 1000", "whole"]
    progress = download.Progress(0, len(content))
    assert get(model_hub, tmp_path, content, progress=progress).read_bytes() == content
    assert progress.there == len(content)


@pytest.mark.parametrize("left", ["rotten", "too long"])
def test_a_damaged_rest_is_thrown_away_and_fetched_again(
    model_hub: Any, content: bytes, tmp_path: Path, left: str
) -> None:
    rest = b"\0" * 900 if left == "rotten" else content + b"more"
    download.partial(tmp_path / WEIGHTS).write_bytes(rest)
    assert get(model_hub, tmp_path, content).read_bytes() == content


def test_a_damaged_file_is_fetched_once_more_and_then_named(model_hub: Any, content: bytes, tmp_path: Path) -> None:
    model_hub.faults[WEIGHTS] = ["wrong"]
    assert get(model_hub, tmp_path, content).read_bytes() == content
    model_hub.faults[WEIGHTS] = ["wrong", "wrong"]
    with pytest.raises(SourceFailed, match="model.safetensors arrived damaged twice") as caught:
        get(model_hub, tmp_path / "..", content, file=RemoteFile(len(content), sha256(content)))
    assert caught.value.kind == "damaged"
    assert not download.partial(tmp_path / ".." / WEIGHTS).exists()


def test_a_file_without_a_sha256_is_known_by_its_git_blob(model_hub: Any, content: bytes, tmp_path: Path) -> None:
    get(model_hub, tmp_path, content, file=RemoteFile(len(content), None, blob_id(content)))
    model_hub.faults[WEIGHTS] = ["wrong", "wrong"]
    with pytest.raises(SourceFailed, match="damaged"):
        get(model_hub, tmp_path, content, file=RemoteFile(len(content), None, blob_id(content)))
    assert not download.matches(tmp_path / WEIGHTS, RemoteFile(len(content))), "nothing is known, so nothing matches"


def test_a_line_that_brings_nothing_is_given_up_and_what_came_stays(
    model_hub: Any, content: bytes, tmp_path: Path
) -> None:
    model_hub.faults[WEIGHTS] = ["cut 1000"] + ["503"] * download.ATTEMPTS
    with pytest.raises(SourceFailed, match="broke off at 1000 of") as caught:
        get(model_hub, tmp_path, content)
    assert caught.value.kind == "unreachable"
    assert download.partial(tmp_path / WEIGHTS).read_bytes() == content[:1000]
    assert get(model_hub, tmp_path, content).read_bytes() == content
    assert model_hub.asked(WEIGHTS)[-1].range == "bytes=1000-"


@pytest.mark.parametrize(("status", "kind"), [("401", "refused"), ("403", "refused"), ("404", "missing")])
def test_a_refusal_is_not_asked_again(model_hub: Any, content: bytes, tmp_path: Path, status: str, kind: str) -> None:
    model_hub.faults[WEIGHTS] = [status]
    with pytest.raises(SourceFailed) as caught:
        get(model_hub, tmp_path, content)
    assert caught.value.kind == kind and len(model_hub.asked(WEIGHTS)) == 1


def test_the_token_stays_with_the_hub_when_it_sends_on_to_another_host(
    model_hub: Any, content: bytes, tmp_path: Path
) -> None:
    model_hub.token, model_hub.moves_large_files = "hf_right_token", True
    with pytest.raises(SourceFailed, match="refused"):
        get(model_hub, tmp_path, content)
    assert get(model_hub, tmp_path, content, token="hf_right_token").read_bytes() == content
    first, second = model_hub.asked(WEIGHTS)[-2:]
    assert first.authorization == "Bearer hf_right_token"
    assert second.host.startswith("localhost") and second.authorization == ""


def test_many_files_arrive_together_and_tell_how_far_they_are(model_hub: Any, content: bytes, tmp_path: Path) -> None:
    published = model_hub.commits[model_hub.branches["main"]]
    files = {name: RemoteFile(len(text), sha256(text)) for name, text in published.items() if "/" not in name}
    total = sum(file.size for file in files.values())
    told: list[int] = []
    url = f"{model_hub.url}/{NAME}/resolve/main/{{}}"
    download.fetch_all(tmp_path, files, url.format, None, lambda there, of, rate: told.append(there), total)
    assert all(download.matches(tmp_path / name, file) for name, file in files.items())
    assert told[-1] == total


def test_one_file_that_fails_ends_the_others_and_keeps_them(model_hub: Any, content: bytes, tmp_path: Path) -> None:
    files = {WEIGHTS: RemoteFile(len(content), sha256(content)), "absent.json": RemoteFile(4, "0" * 64)}
    url = f"{model_hub.url}/{NAME}/resolve/main/{{}}"
    with pytest.raises(SourceFailed, match="absent.json is not there"):
        download.fetch_all(tmp_path, files, url.format, None, lambda *_: None, len(content) + 4)
    assert not (tmp_path / "absent.json").exists()


def test_a_probe_reads_nothing(model_hub: Any, content: bytes) -> None:
    url = f"{model_hub.url}/{NAME}/resolve/main/{WEIGHTS}"
    download.probe(url, None)
    assert [request.method for request in model_hub.requests] == ["HEAD"]
    model_hub.token = "hf_right_token"
    download.probe(url, "hf_right_token")
    with pytest.raises(SourceFailed, match="refused"):
        download.probe(url, None)
    with pytest.raises(SourceFailed) as caught:
        download.probe("http://127.0.0.1:9/x", None)
    assert caught.value.kind == "unreachable"


def test_a_full_disk_is_told_from_other_faults() -> None:
    assert download.is_full_disk(OSError(28, "No space left on device"))
    assert not download.is_full_disk(OSError(5, "Input/output error"))
