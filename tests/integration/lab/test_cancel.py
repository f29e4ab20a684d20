"""A plan that somebody ends, in every moment of it: no process is left."""

from __future__ import annotations

from tests.integration.lab.remote import LONG, ONE, Remote


def test_cancel_ends_every_process_whatever_its_session_and_twice_is_once(remote: Remote) -> None:
    controller = remote.start(*ONE, **LONG)
    remote.wait_for_step("sample")
    # What a data loader or a library might start: a child of the worker in a session of its own.
    worker = next(pid for pid, line in remote.host.processes() if "-m trainer" in line and " worker " in line)
    marker = remote.host.run(f"tr '\\0' '\\n' < /proc/{worker}/environ | grep ^STAGEGATE_PLAN=").stdout.strip()
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
