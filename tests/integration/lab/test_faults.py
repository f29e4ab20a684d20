"""What a rented host does to files, processes and memory: a truthful state each time, nothing lost."""

from __future__ import annotations

import pytest

from tests.integration.lab.remote import LONG, ONE, Remote, error_of


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
    remote.host.limit_memory(300 << 20)  # for a worker that needs more than 400 MiB
    controller = remote.start(*ONE)
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
