"""The real worker of two processes on the tiny base: what it gives is what one process gives, broken off or not."""

from __future__ import annotations

import ast
import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from trainer import process

# Rows do not divide evenly: of the three of `style` in a step the first process has two.
TWO = {"num_processes": 2}
# Long enough to be broken off twice, with dropout: the random numbers of both processes count.
LONG = {**TWO, "max_steps": 120, "save_steps": 20, "lora_dropout": 0.1, "max_new_tokens": 4}


def losses(host: Any, stage: str) -> list[float]:
    """The loss of every step, as the log of the stage's last attempt tells."""
    text = (host.root / host.states()[stage]["log"]).read_text(encoding="utf-8")
    found = [ast.literal_eval(line) for line in text.splitlines() if line.startswith("{'loss'")]
    return [float(entry["loss"]) for entry in found]


def weights(host: Any, stage: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(host.layout.adapters / f"adapter_{stage}" / "adapter_model.safetensors"))


def adapter(host: Any, stage: str = "sample") -> bytes:
    return bytes((host.layout.adapters / f"adapter_{stage}" / "adapter_model.safetensors").read_bytes())


def answers(host: Any, stage: str) -> list[dict[str, Any]]:
    path = host.layout.adapters / f"adapter_{stage}" / f"predictions_{stage}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def members(host: Any) -> list[int]:
    """The processes of the running worker: by their input, the first one first."""
    found = process.descendants(host.plan()["worker"]["pid"])
    return sorted(found, key=lambda pid: not os.readlink(f"/proc/{pid}/fd/0").startswith("socket:"))


def assert_nothing_runs(host: Any) -> None:
    assert process.marked(host.plan()["marker"]) == []


def test_two_processes_give_what_one_gives(make_host: Callable[..., Any]) -> None:
    import torch

    one, two = make_host(), make_host()
    assert one.carry_out("sample", "style", gate_questions="trained") == (0, "")
    assert two.carry_out("sample", "style", gate_questions="trained", **TWO) == (0, "")
    assert_nothing_runs(two)
    first, second = weights(one, "style"), weights(two, "style")
    assert first.keys() == second.keys()
    for name, weight in first.items():
        torch.testing.assert_close(weight, second[name], rtol=1e-3, atol=1e-4)
    single, shared = one.report("style"), two.report("style")
    assert len(losses(one, "style")) == single["training"]["steps"] == shared["training"]["steps"] == 60
    assert losses(two, "style") == pytest.approx(losses(one, "style"), rel=1e-3, abs=1e-4)
    assert answers(one, "style") == answers(two, "style")
    for name in ("name", "questions", "answered", "base"):
        assert [item[name] for item in single["evaluations"]] == [item[name] for item in shared["evaluations"]]
    assert single["gate"] == shared["gate"]
    (chosen,) = [item for item in shared["choices"] if item["name"] == "processes"]
    assert (chosen["value"], chosen["reason"]) == (2, "num_processes")
    (cache,) = two.layout.cache.glob("base_answers_*.json")
    (other,) = one.layout.cache.glob("base_answers_*.json")
    assert json.loads(cache.read_text(encoding="utf-8")) == json.loads(other.read_text(encoding="utf-8"))


def test_broken_off_and_resumed_two_processes_give_the_same_bits(make_host: Callable[..., Any]) -> None:
    whole, broken = make_host(), make_host()
    assert whole.carry_out("sample", gate="off", **LONG) == (0, "")

    supervisor = broken.start(broken.submit("sample", gate="off", **LONG)["plan_id"])
    broken.wait_for(lambda event: event["event"] == "checkpoint")
    assert broken.run("cancel").returncode == 0
    supervisor.communicate(timeout=60)
    assert broken.states()["sample"]["status"] == "cancelled"
    (*_, asked) = [event["step"] for event in broken.events() if event["event"] == "checkpoint"]
    assert_nothing_runs(broken)

    supervisor = broken.start(broken.submit("sample", gate="off", **LONG)["plan_id"])
    broken.wait_for(lambda event: event["event"] == "checkpoint" and event["step"] > asked)
    os.kill(members(broken)[1], signal.SIGKILL)
    supervisor.communicate(timeout=60)
    state = broken.states()["sample"]
    assert (state["status"], state["error"]["kind"]) == ("lost", "WorkerLost")
    assert_nothing_runs(broken)

    assert broken.carry_out("sample", gate="off", **LONG) == (0, "")
    resumed = [event["step"] for event in broken.events() if event["event"] == "resumed"]
    assert len(resumed) == 2 and resumed[0] == asked < resumed[1]
    assert broken.report("sample")["training"]["resumed_from_steps"] == resumed
    assert adapter(broken) == adapter(whole)
    assert losses(broken, "sample") == losses(whole, "sample")[-len(losses(broken, "sample")) :]
    assert answers(broken, "sample") == answers(whole, "sample")


def test_two_processes_that_share_the_base_give_what_one_gives(make_host: Callable[..., Any]) -> None:
    """Of three rows two make a step: the second step of an epoch leaves nothing to the second process."""
    import torch

    asked = {"gate_questions": "trained", "skip_sample": True, "per_device_train_batch_size": 2, "save_steps": 10}
    shares = {**asked, **TWO, "shard_base": True, "gradient_checkpointing": True}
    one, two = make_host(), make_host()
    assert one.carry_out("style", gate="warn", **asked) == (0, "")

    supervisor = two.start(two.submit("style", gate="warn", **shares)["plan_id"])
    two.wait_for(lambda event: event["event"] == "checkpoint" and event["step"] >= 20)
    os.kill(members(two)[1], signal.SIGKILL)
    supervisor.communicate(timeout=60)
    assert two.states()["style"]["status"] == "lost"
    assert two.carry_out("style", gate="warn", **shares) == (0, "")
    assert_nothing_runs(two)

    single, shared = one.report("style"), two.report("style")
    (resumed,) = [event["step"] for event in two.events() if event["event"] == "resumed"]
    assert shared["training"]["resumed_from_steps"] == [resumed] and shared["training"]["steps"] == 60
    for name, weight in weights(one, "style").items():
        torch.testing.assert_close(weight, weights(two, "style")[name], rtol=1e-3, atol=1e-4)
    last = losses(two, "style")
    assert last == pytest.approx(losses(one, "style")[-len(last) :], rel=1e-3, abs=1e-4)
    assert answers(one, "style") == answers(two, "style")
    assert [item["base"] for item in single["evaluations"]] == [item["base"] for item in shared["evaluations"]]
    chosen = {item["name"]: (item["value"], item["reason"]) for item in shared["choices"]}
    assert chosen["shard_base"] == (True, "asked for")
    assert chosen["merge"] == (False, "a base in shares is never whole on one device")
    assert (single["training"]["passes"], shared["training"]["passes"]) == (60, 90), "what teaches nothing is no pass"
