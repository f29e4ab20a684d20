"""Copies of base models: whole only with their manifest, repaired, resumed, taken from whoever has the content."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer import copies, credentials, download, fingerprint, hub
from trainer.errors import HostUnfit, InputError
from trainer.state import Layout

WEIGHTS = "model.safetensors"
NOBODY = "http://127.0.0.1:9"


def silent(text: str) -> None:
    pass


def is_whole(parameters: Any, layout: Layout) -> bool:
    return copies.is_complete(layout, hub.resolve(parameters, layout))


def test_a_copy_arrives_whole_under_the_name_of_its_commit(
    online: Any, layout: Layout, model_hub: Any, tiny_base: Path
) -> None:
    said: list[str] = []
    phases: list[str] = []
    folder = copies.fetch(online(), layout, said.append, phases.append)
    assert folder == layout.models / "acme--Tiny-3" / model_hub.branches["main"]
    wanted = {path.name for path in tiny_base.iterdir()} - {"base.json"}
    assert {path.name for path in folder.iterdir()} == wanted | {"manifest.json"}
    assert all((folder / name).read_bytes() == (tiny_base / name).read_bytes() for name in wanted)
    assert phases == ["downloading", "loading"]
    assert said[0].startswith(f"downloading acme/Tiny-3 from Hugging Face ({model_hub.url}), commit ")
    assert any(" of 0." in line or " kB of " in line for line in said) and "whole and verified" in said[-1]


def test_what_is_still_to_be_fetched_is_counted(online: Any, layout: Layout, model_hub: Any) -> None:
    listing = hub.resolve(online(), layout)
    assert copies.missing_bytes(layout, listing) == listing.size
    folder = copies.fetch(online(), layout, silent)
    assert copies.missing_bytes(layout, listing) == 0
    (folder / "tokenizer.json").unlink()
    assert copies.missing_bytes(layout, listing) == listing.files["tokenizer.json"].size


def test_a_whole_copy_is_used_without_a_network(online: Any, layout: Layout, model_hub: Any) -> None:
    folder = copies.fetch(online(), layout, silent)
    model_hub.stop()
    phases: list[str] = []
    assert copies.fetch(online(), layout, silent, phases.append) == folder and phases == []


@pytest.mark.parametrize("source", ["hub", "modelscope"])
def test_what_a_broken_download_left_is_not_whole_and_is_gone_on_with(
    online: Any, layout: Layout, model_hub: Any, source: str
) -> None:
    parameters = online(model_sources=source)
    model_hub.faults[WEIGHTS] = ["cut 1000"] + ["503"] * download.ATTEMPTS
    with pytest.raises(HostUnfit, match="model.safetensors broke off at 1000 of"):
        copies.fetch(parameters, layout, silent)
    assert not is_whole(parameters, layout)
    folder = copies.fetch(parameters, layout, silent)
    assert is_whole(parameters, layout) and model_hub.asked(WEIGHTS)[-1].range == "bytes=1000-"
    assert len(model_hub.asked("tokenizer.json")) <= 1, "what had arrived is not fetched again"
    assert not list(folder.glob("*.part"))


def test_a_process_that_was_killed_is_gone_on_from(online: Any, layout: Layout, model_hub: Any, tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom trainer import config, copies, download, state\n"
        "download._refuse = lambda status, name: name == 'model.safetensors' and os._exit(9)\n"
        "copies.fetch(config.Parameters(model_name_or_path='acme/Tiny-3', hf_endpoint=sys.argv[1]),"
        " state.Layout(Path(sys.argv[2])))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, model_hub.url, str(layout.root)], capture_output=True, text=True, timeout=120,
        check=False, env={**os.environ, "HF_HUB_OFFLINE": "0"}, cwd=Path(copies.__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 9, done.stderr
    assert not is_whole(online(), layout)
    copies.fetch(online(), layout, silent)
    assert is_whole(online(), layout)


def test_a_copy_without_its_manifest_is_read_again_but_not_fetched_again(
    online: Any, layout: Layout, model_hub: Any
) -> None:
    folder = copies.fetch(online(), layout, silent)
    (folder / "manifest.json").unlink()
    asked = len(model_hub.asked(WEIGHTS))
    assert not is_whole(online(), layout)
    copies.fetch(online(), layout, silent)
    assert is_whole(online(), layout) and len(model_hub.asked(WEIGHTS)) == asked


@pytest.mark.parametrize("harm", ["changed", "shorter", "gone"])
def test_a_file_that_changed_on_disk_is_noticed_and_fetched_again(
    online: Any, layout: Layout, model_hub: Any, harm: str
) -> None:
    weights = copies.fetch(online(), layout, silent) / WEIGHTS
    content = weights.read_bytes()
    if harm == "gone":
        weights.unlink()
    else:
        weights.write_bytes(content[:-1] + (b"" if harm == "shorter" else bytes([content[-1] ^ 1])))
    assert not is_whole(online(), layout)
    copies.fetch(online(), layout, silent)
    assert weights.read_bytes() == content and is_whole(online(), layout)


def test_a_file_with_another_time_is_read_once_more_and_then_believed(
    online: Any, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = copies.fetch(online(), layout, silent) / WEIGHTS
    os.utime(weights, ns=(1, 1))
    assert is_whole(online(), layout), "the content is the published one"
    copies.fetch(online(), layout, silent)
    monkeypatch.setattr(download, "matches", lambda *_: False)
    assert is_whole(online(), layout), "by its size and time alone"


def test_a_moved_branch_never_mixes_with_the_pinned_commit(online: Any, layout: Layout, model_hub: Any) -> None:
    model_hub.faults[WEIGHTS] = ["cut 1000"] + ["503"] * download.ATTEMPTS
    with pytest.raises(HostUnfit):
        copies.fetch(online(model_sources="hub"), layout, silent)
    pinned = model_hub.branches["main"]
    files = dict(model_hub.commits[pinned])
    model_hub.publish({**files, WEIGHTS: files[WEIGHTS][::-1]})
    said: list[str] = []
    folder = copies.fetch(online(model_sources="hub"), layout, said.append)
    assert folder.name == pinned and (folder / WEIGHTS).read_bytes() == files[WEIGHTS]
    assert "main moved from" in said[-1]


def test_another_source_steps_in_with_the_same_content(
    online: Any, layout: Layout, model_hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = hub.resolve(online(), layout)
    said: list[str] = []
    folder = copies.fetch(online(hf_endpoint=NOBODY), layout, said.append)
    assert folder.name == pin.commit and is_whole(online(), layout)
    assert any(line.startswith(f"Hugging Face ({NOBODY}) failed: ") for line in said)
    assert all("/api/v1/" in request.path for request in model_hub.asked(WEIGHTS))


def test_another_source_with_other_content_is_refused(online: Any, layout: Layout, model_hub: Any) -> None:
    pin = hub.resolve(online(), layout)
    files = dict(model_hub.commits[pin.commit])
    model_hub.publish({**files, WEIGHTS: files[WEIGHTS][::-1]})
    with pytest.raises(HostUnfit, match="master holds other files than the pinned commit"):
        copies.fetch(online(hf_endpoint=NOBODY), layout, silent)
    assert not is_whole(online(), layout)


def test_damage_that_stays_is_named(online: Any, layout: Layout, model_hub: Any) -> None:
    model_hub.faults[WEIGHTS] = ["wrong", "wrong"]
    with pytest.raises(HostUnfit, match="model.safetensors arrived damaged twice"):
        copies.fetch(online(model_sources="hub"), layout, silent)
    assert not is_whole(online(), layout)
    copies.fetch(online(model_sources="hub"), layout, silent)
    assert is_whole(online(), layout)


def test_a_gated_model_says_how_to_give_a_token(online: Any, layout: Layout, model_hub: Any) -> None:
    model_hub.token = "hf_right_token"  # the list is open, the files are not
    pin = hub.resolve(online(), layout)
    for attempt in (copies.check_access, lambda p, where, _: copies.fetch(p, where, silent)):
        with pytest.raises(InputError, match="was refused .401.; accept its terms on the hub and give a token"):
            attempt(online(), layout, pin)
    credentials.put(layout, "hf_token", "hf_right_token")
    copies.check_access(online(), layout, pin)
    assert copies.fetch(online(), layout, silent)


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(
    online: Any, layout: Layout, model_hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = hub.resolve(online(), layout)
    free = SimpleNamespace(free=copies.SPARE_BYTES + pin.size - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    for attempt in (copies.check_access, lambda p, where, _: copies.fetch(p, where, silent)):
        with pytest.raises(HostUnfit, match="still needs .* are free; make room there"):
            attempt(online(), layout, pin)
    assert model_hub.asked(WEIGHTS) == []
    free.free += 1
    copies.check_access(online(), layout, pin)
    assert copies.fetch(online(), layout, silent)


def test_a_disk_that_fills_up_meanwhile_is_told_in_the_same_words(
    online: Any, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "fetch_all", full)
    with pytest.raises(HostUnfit, match="make room there or put the project root on a larger disk"):
        copies.fetch(online(), layout, silent)


def test_the_hash_of_the_base_is_bound_to_the_commit_and_its_files(
    online: Any, layout: Layout, model_hub: Any, tmp_path: Path
) -> None:
    before = fingerprint.of_base(online(), layout, tmp_path)
    copies.fetch(online(), layout, silent)
    assert fingerprint.of_base(online(), layout, tmp_path) == before, "known before it was fetched"
    files = dict(model_hub.commits[model_hub.branches["main"]])
    other = model_hub.publish({**files, WEIGHTS: files[WEIGHTS][::-1]})
    assert fingerprint.of_base(online(), layout, tmp_path) == before
    assert fingerprint.of_base(online(model_revision=other), layout, tmp_path) != before


@pytest.mark.parametrize(("count", "shown"), [(16_381_000_000, "16.4 GB"), (2_500_000, "2.5 MB"), (900, "0.9 kB")])
def test_sizes_as_people_read_them(count: int, shown: str) -> None:
    assert copies.size(count) == shown
