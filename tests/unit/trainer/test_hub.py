"""Which commit is used: pinned once, noticed when its branch moves, asked of one source after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer import hub
from trainer.errors import HostUnfit, InputError
from trainer.state import Layout

NOBODY = "http://127.0.0.1:9"


def republish(model_hub: Any) -> str:
    files = dict(model_hub.commits[model_hub.branches["main"]])
    return str(model_hub.publish({**files, "generation_config.json": b"{}"}))


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "acme/Tiny-3", "a.b/c_d"])
def test_a_repository_is_known_by_its_name(name: str) -> None:
    assert hub.is_remote(name)


def test_a_folder_and_the_embedded_base_are_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme" / "Tiny-3").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not hub.is_remote("embedded") and not hub.is_remote("acme/Tiny-3") and not hub.is_remote(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "said"),
    [("./nowhere", "is not a folder of this host"), ("/nowhere", "is not a folder of this host"),
     ("embeded", "did you mean embedded?"), ("Qwen3-8B", "no id such as Qwen/Qwen3-8B"), ("a/b/c", "no id such as")],
)  # fmt: skip
def test_a_name_that_is_neither_is_refused(name: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        hub.is_remote(name)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "order"),
    [({}, ["hub", "modelscope"]), ({"use_modelscope": True}, ["modelscope", "hub"]),
     ({"model_sources": "hub"}, ["hub"]), ({"model_sources": "modelscope, hub"}, ["modelscope", "hub"]),
     ({"model_sources": "hub", "use_modelscope": True}, ["hub"])],
)  # fmt: skip
def test_the_order_of_the_sources(online: Any, changes: dict[str, Any], order: list[str]) -> None:
    assert hub.sources(online(**changes)) == order


def test_a_branch_is_pinned_with_its_first_answer(online: Any, layout: Layout, model_hub: Any) -> None:
    first = hub.resolve(online(), layout)
    assert first.commit == model_hub.branches["main"] and first.source == "hub"
    asked = len(model_hub.requests)
    moved_to = republish(model_hub)
    assert hub.resolve(online(), layout) == first
    assert len(model_hub.requests) == asked, "a pinned commit needs no network"
    assert hub.resolve(online(model_revision=moved_to), layout).commit == moved_to


def test_what_was_pinned_is_told_without_a_network(online: Any, layout: Layout, model_hub: Any) -> None:
    assert hub.pinned(online(), layout) is None and model_hub.requests == []
    found = hub.resolve(online(), layout)
    asked = len(model_hub.requests)
    assert hub.pinned(online(), layout) == found
    assert hub.pinned(online(model_revision="other"), layout) is None and len(model_hub.requests) == asked


def test_a_look_that_is_not_to_be_remembered_pins_nothing(online: Any, layout: Layout, model_hub: Any) -> None:
    hub.resolve(online(), layout, remember=False)
    later = republish(model_hub)
    assert not layout.models.exists()
    assert hub.resolve(online(), layout).commit == later


def test_a_moved_branch_is_noticed_and_says_how_to_follow_it(online: Any, layout: Layout, model_hub: Any) -> None:
    pinned = hub.resolve(online(), layout).commit
    assert hub.moved(online(), layout) == ""
    there = republish(model_hub)
    told = hub.moved(online(), layout)
    assert f"main moved from {pinned} to {there}" in told and f"set model_revision to {there}" in told
    assert hub.moved(online(model_revision=there), layout) == "", "a commit does not move"
    assert hub.moved(online(hf_endpoint=NOBODY), layout) == "", "unanswered is not moved"


def test_the_second_source_is_tried_when_the_first_cannot_be_reached(
    online: Any, layout: Layout, model_hub: Any
) -> None:
    found = hub.resolve(online(hf_endpoint=NOBODY), layout)
    assert (found.source, found.revision) == ("modelscope", "master")
    assert hub.resolve(online(), layout) == found, "the pin stays although the hub can be reached again"


def test_an_answer_of_no_is_believed_unless_another_source_was_asked_for(
    online: Any, layout: Layout, model_hub: Any
) -> None:
    model_hub.private, model_hub.token = True, "hf_right_token"
    with pytest.raises(InputError, match="set use_modelscope to true for one that is published there only"):
        hub.resolve(online(), layout)
    assert hub.resolve(online(model_sources="hub,modelscope"), layout).source == "modelscope"


def test_when_nobody_answers_each_source_tells_why(online: Any, layout: Layout, monkeypatch: Any) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://user:secret-word@127.0.0.1:9")
    with pytest.raises(HostUnfit) as caught:
        hub.resolve(online(hf_endpoint=NOBODY), layout)
    sentence = str(caught.value)
    assert f"Hugging Face ({NOBODY}): " in sentence and "ModelScope (http://***@127.0.0.1:9): " in sentence
    assert sentence.endswith(
        "set hf_endpoint to a mirror, use_modelscope to true, or model_name_or_path to a local folder"
    )
    assert "secret-word" not in sentence


def test_a_name_with_an_ending_too_many_is_set_right(online: Any, layout: Layout) -> None:
    with pytest.raises(InputError, match=r"did you mean acme/Tiny-3\?$"):
        hub.resolve(online(model_name_or_path="acme/Tiny-3-Instruct"), layout)
    with pytest.raises(InputError, match="correct model_name_or_path"):
        hub.resolve(online(model_name_or_path="acme/Tiny-4-Instruct"), layout)


def test_a_revision_that_is_not_there_is_a_wrong_parameter(online: Any, layout: Layout) -> None:
    with pytest.raises(InputError, match="it has no revision 'v9'; correct model_revision"):
        hub.resolve(online(model_revision="v9"), layout)
    assert hub.resolve(online(), layout)


def test_a_token_opens_a_private_model(
    online: Any, layout: Layout, model_hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_hub.private, model_hub.token = True, "hf_right_token"
    monkeypatch.setenv("HF_TOKEN", "hf_right_token")
    assert hub.resolve(online(), layout).files


def test_a_provider_file_brings_its_proxies_and_nothing_else(
    online: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.setenv(name, "http://before.example.org")
    turbo = tmp_path / "network_turbo"
    turbo.write_text(
        'echo set\nexport no_proxy=127.0.0.1 http_proxy="http://10.0.0.1:1"\nexport PATH_X=1\nread answer\n'
        "export http_proxy=$http_proxy$((1 + 1))\n",
        encoding="utf-8",
    )
    hub.use_network(online())
    import os

    assert os.environ["http_proxy"] == "http://before.example.org"
    hub.use_network(online(network_environment_file=str(turbo)))
    assert (os.environ["http_proxy"], os.environ["no_proxy"]) == ("http://10.0.0.1:12", "127.0.0.1")
    assert os.environ["https_proxy"] == "http://before.example.org" and "PATH_X" not in os.environ
    hub.use_network(online(network_environment_file=str(tmp_path / "absent")))


def test_a_report_tells_where_the_base_came_from(online: Any, layout: Layout, model_hub: Any, tmp_path: Path) -> None:
    told = hub.described(online(), layout)
    assert told == {"base_source": "hub", "base_revision": "main", "base_commit": model_hub.branches["main"]}
    assert hub.described(online(model_name_or_path=str(tmp_path)), layout) == {}


def test_pins_are_kept_beside_each_other(online: Any, layout: Layout, model_hub: Any) -> None:
    hub.resolve(online(), layout)
    hub.resolve(online(model_sources="modelscope"), layout)
    record = json.loads((hub.home(layout, "acme/Tiny-3") / "pins.json").read_text(encoding="utf-8"))
    assert {name: pin["source"] for name, pin in record["revisions"].items()} == {
        "hub,modelscope main": "hub", "modelscope main": "modelscope",
    }  # fmt: skip
