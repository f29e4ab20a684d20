"""What a repository publishes, as Hugging Face and as ModelScope tell it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.model_hub import NAME, sha256
from trainer import repositories
from trainer.repositories import RemoteFile, SourceFailed, as_record, endpoint_of, look_up, of_record


@pytest.fixture(autouse=True)
def _reachable(online: Any) -> None:
    pass


def listed(hub: Any, source: str, revision: str = "main", token: str | None = None) -> repositories.Listing:
    return look_up(source, hub.url, NAME, revision, token)


@pytest.mark.parametrize("source", repositories.SOURCES)
def test_weights_tokenizer_and_configuration_are_listed_and_nothing_that_could_run(model_hub: Any, source: str) -> None:
    found = listed(model_hub, source)
    assert found.commit == model_hub.branches["main"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(found.files)
    assert not [name for name in found.files if name.endswith((".bin", ".py")) or "/" in name]
    content = model_hub.commits[found.commit]["model.safetensors"]
    assert found.files["model.safetensors"].sha256 == sha256(content)
    assert found.size == sum(len(model_hub.commits[found.commit][name]) for name in found.files)


def test_the_hub_tells_the_architecture(model_hub: Any) -> None:
    assert listed(model_hub, "hub").architectures == ("Qwen3ForCausalLM",)


@pytest.mark.parametrize("source", repositories.SOURCES)
def test_an_unknown_revision_is_told_from_a_known_one(model_hub: Any, source: str) -> None:
    with pytest.raises(SourceFailed, match="no revision 'v9'") as caught:
        listed(model_hub, source, "v9")
    assert caught.value.kind == "revision"
    assert listed(model_hub, source, model_hub.branches["main"]).files


@pytest.mark.parametrize("source", repositories.SOURCES)
def test_an_unknown_model_is_missing(model_hub: Any, source: str) -> None:
    with pytest.raises(SourceFailed, match="no such model") as caught:
        look_up(source, model_hub.url, "acme/Tiny-4", "main", None)
    assert caught.value.kind == "missing"


@pytest.mark.parametrize("source", repositories.SOURCES)
def test_a_server_in_trouble_is_out_of_reach_until_it_recovers(model_hub: Any, source: str) -> None:
    model_hub.faults["list"] = ["500"]
    with pytest.raises(SourceFailed, match="answered 500") as caught:
        listed(model_hub, source)
    assert caught.value.kind == "unreachable"
    assert listed(model_hub, source).files


def test_nobody_there_is_out_of_reach(model_hub: Any) -> None:
    with pytest.raises(SourceFailed) as caught:
        look_up("hub", "http://127.0.0.1:9", NAME, "main", None)
    assert caught.value.kind == "unreachable" and "\n" not in str(caught.value)


def test_a_private_model_needs_its_token_which_modelscope_never_gets(model_hub: Any) -> None:
    model_hub.token, model_hub.private = "hf_right_token", True
    with pytest.raises(SourceFailed, match="or it is private"):
        listed(model_hub, "hub", token="hf_wrong_token")
    assert listed(model_hub, "hub", token="hf_right_token").files
    listed(model_hub, "modelscope", token="hf_right_token")
    assert model_hub.requests[-1].authorization == ""


def test_a_token_that_lies_on_the_host_is_not_sent_unasked(model_hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_lies_around")
    listed(model_hub, "hub")
    assert model_hub.requests[-1].authorization == ""


def test_a_repository_without_safetensors_is_refused(model_hub: Any) -> None:
    files = dict(model_hub.commits[model_hub.branches["main"]])
    del files["model.safetensors"]
    model_hub.publish(files, "pickles")
    with pytest.raises(SourceFailed, match="no safetensors weights"):
        listed(model_hub, "hub", "pickles")


def test_offline_mode_asks_nobody(model_hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceFailed, match="HF_HUB_OFFLINE"):
        listed(model_hub, "hub")
    assert model_hub.requests == []


def test_the_commit_is_in_every_address(model_hub: Any) -> None:
    found = listed(model_hub, "hub")
    assert found.url("config.json") == f"{model_hub.url}/{NAME}/resolve/{found.commit}/config.json"
    there = listed(model_hub, "modelscope").url("config.json")
    assert there == f"{model_hub.url}/api/v1/models/{NAME}/repo?Revision={found.commit}&FilePath=config.json"


def test_a_modelscope_list_that_names_no_commit_is_known_by_its_content(model_hub: Any) -> None:
    original = model_hub._send

    def nameless(handler: Any, status: int, content: bytes, *more: Any) -> None:
        original(handler, status, content.replace(b'"ShortId"', b'"Other"'), *more)

    model_hub._send = nameless
    first = listed(model_hub, "modelscope")
    assert first.commit.startswith("content-") and first.url("config.json").endswith(
        "Revision=master&FilePath=config.json"
    )
    files = dict(model_hub.commits[model_hub.branches["main"]])
    model_hub.publish({**files, "config.json": files["config.json"] + b"\n"})
    assert listed(model_hub, "modelscope").commit != first.commit


def test_a_listing_survives_its_record(model_hub: Any) -> None:
    found = listed(model_hub, "hub")
    again = of_record(as_record(found))
    assert again == found and again.identity == found.identity


def test_the_identity_follows_the_content(model_hub: Any) -> None:
    first = listed(model_hub, "hub")
    files = dict(model_hub.commits[first.commit])
    model_hub.publish({**files, "model.safetensors": files["model.safetensors"][:-1] + b"x"})
    assert listed(model_hub, "hub").identity != first.identity


def test_a_source_holds_another_ones_files_or_not(model_hub: Any) -> None:
    pinned = listed(model_hub, "hub")
    assert listed(model_hub, "modelscope").holds(pinned)
    other = {**pinned.files, "model.safetensors": RemoteFile(pinned.files["model.safetensors"].size, "0" * 64)}
    assert not repositories.Listing(**{**pinned.__dict__, "files": other}).holds(pinned)
    fewer = {name: file for name, file in pinned.files.items() if name != "config.json"}
    assert not repositories.Listing(**{**pinned.__dict__, "files": fewer}).holds(pinned)


def test_the_parameter_wins_over_the_environment_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    assert endpoint_of("hub", "auto") == "https://huggingface.co"
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example.org/")
    assert endpoint_of("hub", "auto") == "https://hub.example.org"
    assert endpoint_of("hub", "https://other.example.org") == "https://other.example.org"
