"""What a rented host and a bad line do to a plan: nothing of it is lost, started twice or reported wrongly."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.integration.lab.remote import Remote, error_of

LONG = {"trainer_hp_max_steps": 500}  # seconds of training, so that something can happen meanwhile
ONE = ("--tags", "sample")


def assert_trained_once(remote: Remote, stage: str = "sample") -> None:
    assert remote.state(stage)["status"] == "passed"
    assert remote.phases("training") == [stage]
    assert [e["stage"] for e in remote.events() if e["event"] == "stage started"] == [stage]
    assert [e["event"] for e in remote.events()].count("plan started") == 1


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


def test_link_down_for_ninety_seconds_is_waited_out_and_told(remote: Remote) -> None:
    controller = remote.start(*ONE, **LONG)
    remote.wait_for_step("sample")
    remote.host.cut()
    controller.wait_for("host unreachable for", 120)
    with pytest.raises(subprocess.TimeoutExpired):
        controller.wait(90 - 60)
    remote.host.mend()
    assert controller.wait(120) == 0, controller.output
    assert "the plan goes on there" in controller.output
    assert "host reachable again after" in controller.output
    assert_trained_once(remote)


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


def test_power_loss_in_training_is_reported_and_the_next_run_goes_on_from_a_checkpoint(remote: Remote) -> None:
    variables = {**LONG, "trainer_hp_save_steps": 20}
    controller = remote.start(*ONE, **variables)
    checkpoint = remote.wait_for(lambda e: e["event"] == "checkpoint")
    remote.host.power_off()
    remote.host.power_on()
    assert controller.wait(120) == 7, controller.output
    assert "lost" in error_of(controller.output)
    assert remote.state("sample")["status"] == "lost"
    again = remote.run(*ONE, **variables)
    assert again.returncode == 0, again.stdout + again.stderr
    (resumed,) = [e for e in remote.events() if e["event"] == "resumed"]
    assert resumed["step"] >= checkpoint["step"]
    assert "resumed from step" in again.stdout


def test_supervisor_and_worker_killed_together_are_reported_lost_and_nothing_else_is_touched(remote: Remote) -> None:
    remote.host.run("setsid sleep 1000 >/dev/null 2>&1 &")
    controller = remote.start(*ONE, **LONG)
    remote.wait_for_step("sample")
    remote.host.run("pkill -KILL -f -- '-m trainer.* (supervise|worker) '")
    assert controller.wait(60) == 7, controller.output
    assert remote.state("sample")["status"] == "lost"
    assert remote.status()["running"] is False
    assert [line for _, line in remote.host.processes()].count("sleep 1000") == 1


def test_kernel_out_of_memory_is_named(remote: Remote) -> None:
    if missing := remote.lab.missing("memory"):
        pytest.skip(missing)
    controller = remote.start(*ONE, **LONG)
    remote.wait_for_step("sample")
    worker = next(pid for pid, _, line in remote.host.all_processes() if " worker " in line)
    used = int(
        next(x for x in Path(f"/proc/{worker}/status").read_text().splitlines() if x.startswith("VmRSS")).split()[1]
    )
    remote.host.limit_memory(used * 1024 // 2)
    code = controller.wait(120)
    remote.host.limit_memory(None)
    assert remote.host.oom_kills() > 0
    assert code == 7, controller.output
    state = remote.state("sample")
    assert state["status"] == "lost"
    assert "memory" in state["message"]


@pytest.mark.parametrize("what", ["space", "inodes"])
def test_full_disk_is_told_truthfully_and_the_next_run_succeeds(remote: Remote, what: str) -> None:
    controller = remote.start(*ONE, **LONG)
    remote.wait_for_step("sample")
    remote.host.fill_disk() if what == "space" else remote.host.fill_inodes()
    code = controller.wait(300)
    remote.host.free_disk() if what == "space" else remote.host.free_inodes()
    assert code in (5, 7), controller.output
    state = remote.status()["stages"]["sample"]
    assert state["status"] in ("failed", "lost")
    again = remote.run(*ONE, **LONG)
    assert again.returncode == 0, again.stdout + again.stderr
    assert remote.state("sample")["status"] == "passed"


@pytest.mark.parametrize("name", ["plan.json", "sample.json"])
def test_truncated_state_stops_with_its_name_and_nothing_is_deleted(remote: Remote, name: str) -> None:
    assert remote.run(*ONE).returncode == 0
    path = remote.root / "outputs" / "state" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    events = len(remote.events())
    refused = remote.run(*ONE)
    assert refused.returncode == 7, refused.stdout + refused.stderr
    assert name in error_of(refused.stderr)
    assert path.read_bytes() == whole[: len(whole) // 2]
    assert len(remote.events()) == events
    path.write_bytes(whole)
    accepted = remote.run(*ONE)
    assert accepted.returncode == 0, accepted.stdout + accepted.stderr
    assert remote.phases("training") == ["sample"]


def test_cancel_ends_every_process_whatever_its_session_and_twice_is_once(remote: Remote) -> None:
    controller = remote.start(*ONE, **LONG)
    remote.wait_for_step("sample")
    # What a data loader or a library might start: a child of the worker in a session of its own.
    marker = remote.host.run(
        "tr '\\0' '\\n' < /proc/$(pgrep -f -- '-m trainer.* worker ')/environ | grep ^STAGEGATE_PLAN="
    ).stdout.strip()
    remote.host.run(f"env '{marker}' setsid sleep 2000 >/dev/null 2>&1 &")
    done = remote.run(playbook="cancel")
    assert done.returncode == 0, done.stdout + done.stderr
    assert remote.training_processes() == []
    assert "sleep 2000" not in [line for _, line in remote.host.processes()]
    assert remote.state("sample")["status"] == "cancelled"
    assert controller.wait(60) == 7
    again = remote.run(playbook="cancel")
    assert again.returncode == 0
    assert "nothing to cancel" in again.stdout


def test_cancel_in_the_launch(remote: Remote) -> None:
    controller = remote.start(*ONE, **LONG)
    remote.wait_until(lambda: (remote.root / "outputs/state/plan.json").exists())
    done = remote.run(playbook="cancel")
    assert done.returncode == 0, done.stdout + done.stderr
    assert controller.wait(120) == 7, controller.output
    assert remote.training_processes() == []
    assert remote.status()["running"] is False


def test_time_limit_of_a_stage_holds_without_a_controller(remote: Remote) -> None:
    controller = remote.start(*ONE, **LONG, trainer_hp_stage_timeout_seconds=25)
    remote.wait_for_step("sample")
    controller.lose()
    ended = remote.wait_for(lambda e: e["event"] == "plan ended", 60)
    assert ended["exit_code"] == 5
    assert "stage_timeout_seconds" in ended["message"]
    assert remote.training_processes() == []


def test_frozen_host_goes_on_where_it_stood(remote: Remote) -> None:
    if missing := remote.lab.missing("freeze"):
        pytest.skip(missing)
    controller = remote.start(*ONE, **LONG)
    remote.wait_for_step("sample")
    remote.host.freeze()
    with pytest.raises(subprocess.TimeoutExpired):
        controller.wait(15)
    remote.host.thaw()
    assert controller.wait(200) == 0, controller.output
    assert_trained_once(remote)


def test_noise_of_the_login_confuses_nothing(remote: Remote) -> None:
    remote.host.noisy_login()
    done = remote.run("--tags", "sample,collect")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_trained_once(remote)
    assert (remote.outputs / "adapter" / "adapter_sample" / "adapter_model.safetensors").is_file()
