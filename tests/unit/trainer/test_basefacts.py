"""trainer/basefacts.py: what is known of a base that is not loaded, without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer import basefacts, copies, hub
from trainer.config import Parameters
from trainer.errors import InputError
from trainer.repositories import Listing, RemoteFile
from trainer.shape import of_folder, of_name
from trainer.state import Layout


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(hub, "look_up", asked)
    monkeypatch.setattr(copies, "look_up", asked)


def test_a_folder_tells_everything(tmp_path: Path, tiny_base: Path) -> None:
    found = basefacts.of(Parameters(model_name_or_path=str(tiny_base)), Layout(tmp_path))
    assert found.shape == of_folder(tiny_base) is not None
    assert (found.folder, found.download_bytes, found.source) == (tiny_base, 0, "its config.json")


def test_a_folder_of_another_architecture_is_there_but_unknown(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}', encoding="utf-8")
    found = basefacts.of(Parameters(model_name_or_path=str(tmp_path)), Layout(tmp_path))
    assert (found.shape, found.folder, found.download_bytes) == (None, tmp_path, 0)


def test_the_default_model_is_known_before_it_is_fetched(tmp_path: Path) -> None:
    found = basefacts.of(Parameters(), Layout(tmp_path))
    assert found.shape == of_name("Qwen/Qwen3-8B") is not None
    assert (found.folder, found.download_bytes) == (None, None)


def test_an_unknown_model_of_the_hub_is_unknown(tmp_path: Path) -> None:
    found = basefacts.of(Parameters(model_name_or_path="example/model"), Layout(tmp_path))
    assert (found.shape, found.source, found.folder, found.download_bytes) == (None, "", None, None)


def test_a_name_that_can_be_no_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder of this host"):
        basefacts.of(Parameters(model_name_or_path=str(tmp_path / "none")), Layout(tmp_path))
    assert basefacts.of(Parameters(model_name_or_path=str(tmp_path)), Layout(tmp_path)).folder == tmp_path


def test_the_embedded_base_is_known_from_its_recipe_until_it_is_built(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Parameters(model_name_or_path="embedded")
    before = basefacts.of(wanted, Layout(tmp_path))
    assert before.shape is not None and before.source == "its recipe" and before.folder is None
    assert (before.shape.layers, before.shape.hidden, before.shape.tied) == (3, 256, True)
    monkeypatch.setattr(basefacts.base, "location", lambda *_: tiny_base)
    after = basefacts.of(wanted, Layout(tmp_path))
    assert (after.shape, after.source, after.folder) == (of_folder(tiny_base), "its config.json", tiny_base)


@pytest.fixture
def pin(tmp_path: Path) -> Callable[[int], tuple[Parameters, Layout, Path]]:
    """Pins a listing of one config and `weights` bytes; returns parameters, layout and the copy's folder."""

    def make(weights: int) -> tuple[Parameters, Layout, Path]:
        parameters, layout = Parameters(model_name_or_path="Qwen/Qwen3-0.6B"), Layout(tmp_path)
        files = {"config.json": RemoteFile(20), "model.safetensors": RemoteFile(weights)}
        listing = Listing("hub", "https://hub.example.org", "Qwen/Qwen3-0.6B", "main", "a" * 40, files)
        hub._remember(layout, listing, hub._key(parameters))
        return parameters, layout, copies.location(layout, listing)

    return make


def test_a_pinned_model_tells_what_is_still_to_be_fetched(pin: Any, tiny_base: Path) -> None:
    parameters, layout, folder = pin(1000)
    assert basefacts.of(parameters, layout).download_bytes == 1020
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((tiny_base / "config.json").read_bytes())
    begun = basefacts.of(parameters, layout)
    assert (begun.download_bytes, begun.folder, begun.shape) == (1000, None, of_folder(tiny_base))


def test_a_whole_copy_is_a_folder_with_nothing_to_fetch(
    pin: Any, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters, layout, folder = pin(1000)
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((tiny_base / "config.json").read_bytes())
    monkeypatch.setattr(copies, "is_complete", lambda *_: True)
    found = basefacts.of(parameters, layout)
    assert (found.folder, found.download_bytes) == (folder, 0)
