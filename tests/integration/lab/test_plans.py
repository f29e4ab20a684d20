"""Controllers that come, go and meet: one plan, one training."""

from __future__ import annotations

import pytest

from tests.integration.lab.remote import LONG, ONE, Remote, assert_trained_once, error_of


def test_whole_line_over_ssh_and_a_second_run_that_has_nothing_to_do(remote: Remote) -> None:
    done = remote.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert remote.phases("training") == ["sample", "style", "writing", "all"]
    for adapter in ("sample", "style", "writing", "multitask"):
        assert (remote.outputs / "adapter" / f"adapter_{adapter}" / "adapter_model.safetensors").is_file()
    again = remote.run()
    assert again.returncode == 0, again.stdout + again.stderr
    assert "changed=0 " in again.stdout
    assert remote.training_processes() == []


# Each word: what must have happened on the host, or here, when the controller dies.
MOMENTS = {
    "submitted": lambda remote: (remote.root / "outputs/state/plan.json").exists(),
    "started": lambda remote: any(e["event"] == "plan started" for e in remote.events()),
    "training": lambda remote: any("step" in e for e in remote.events()),
    "evaluating": lambda remote: "sample" in remote.phases("evaluating"),
    "collecting": lambda remote: (remote.root / "outputs/training_sync").exists(),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_lost_controller_is_followed_by_one_that_adopts_the_plan(remote: Remote, moment: str) -> None:
    variables = LONG if moment == "training" else {}
    controller = remote.start(*ONE, "--tags", "sample,collect", **variables)
    remote.wait_until(lambda: MOMENTS[moment](remote))
    controller.lose()
    again = remote.run("--tags", "sample,collect", **variables)
    assert again.returncode == 0, again.stdout + again.stderr
    assert_trained_once(remote)
    weights = "adapter/adapter_sample/adapter_model.safetensors"
    assert (remote.outputs / weights).read_bytes() == (remote.root / "outputs" / weights).read_bytes()


def test_two_controllers_with_one_wish_watch_one_plan(remote: Remote) -> None:
    both = [remote.start(*ONE, **LONG) for _ in range(2)]
    assert [controller.wait(300) for controller in both] == [0, 0], "\n".join(c.output for c in both)
    assert_trained_once(remote)


def test_second_controller_with_another_wish_is_told_who_holds_the_host(remote: Remote) -> None:
    first = remote.start(*ONE, **LONG)
    remote.wait_for_step("sample")
    other = remote.run(*ONE, **LONG, trainer_hp_learning_rate=1e-3)
    assert other.returncode == 7, other.stdout + other.stderr
    assert remote.plan()["plan_id"] in error_of(other.stderr)
    assert first.wait(300) == 0, first.output
    assert_trained_once(remote)


def test_time_limit_of_a_stage_holds_without_a_controller(remote: Remote) -> None:
    controller = remote.start(*ONE, **LONG, trainer_hp_stage_timeout_seconds=25)
    remote.wait_for_step("sample")
    controller.lose()
    ended = remote.wait_for(lambda e: e["event"] == "plan ended", 60)
    assert ended["exit_code"] == 5
    assert "stage_timeout_seconds" in ended["message"]
    remote.wait_until(lambda: remote.training_processes() == [], 30)
