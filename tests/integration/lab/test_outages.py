"""Hosts that go away and come back: links, power, frozen machines, noisy logins."""

from __future__ import annotations

import subprocess

import pytest

from tests.integration.lab.remote import LONG, ONE, Remote, assert_trained_once, error_of


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
