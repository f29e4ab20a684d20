"""The lab itself: hosts are apart, each fault does what it says and is undone, and nothing is left of a lab."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.lab import Host, Lab, LabError
from tests.lab.lab import REPOSITORY
from tests.lab.namespaces import wait_until

MARK = "lab-test-of-what-is-left"


def traces(text: str) -> list[str]:
    """Processes and mounts of this machine, and control groups, that name this text."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if entry.name.isdigit() and int(entry.name) != os.getpid() and text in line:
                found.append(line)
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    return found + [row for row in mounts if text in row]


def namespaces_of(lab: Lab) -> set[tuple[str, int]]:
    pids = [lab.world.pid, *(host.pid for host in lab.hosts)]
    return {(kind, os.stat(f"/proc/{pid}/ns/{kind}").st_ino) for pid in pids for kind in ("net", "mnt", "pid")}


def used_namespaces() -> set[tuple[str, int]]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        for kind in ("net", "mnt", "pid"):
            with contextlib.suppress(OSError):
                found.add((kind, os.stat(entry / "ns" / kind).st_ino))
    return found


def hears(lab: Lab, host: Host) -> bool:
    return lab.ssh(host, "true").returncode == 0


def memory_hog(size_bytes: int) -> str:
    return f"/usr/bin/python3 -c 'held = bytearray({size_bytes}); print(len(held))'"


@pytest.fixture(scope="module")
def pair(world: Lab) -> tuple[Host, Host]:
    return world.hosts[0], world.hosts[1]


# -- what a host is ------------------------------------------------------------------------------------------------


def test_ssh_reaches_every_host_with_the_pinned_key(world: Lab) -> None:
    for host in world.hosts:
        done = world.ssh(host, "hostname; id -u; echo $HOME")
        assert done.stdout.split() == [host.name, "0", "/root"], done.stderr


def test_a_key_that_is_not_pinned_is_refused(world: Lab, box: Host) -> None:
    known = world.home / ".ssh" / "known_hosts"
    known.write_text("".join(row for row in known.read_text().splitlines(True) if box.address not in row))
    refused = world.ssh(box, "true")
    assert refused.returncode == 255 and "Host key verification failed" in refused.stderr
    world.pin_keys()
    assert hears(world, box)


def test_hosts_see_neither_each_other_s_processes_nor_the_machine_s(pair: tuple[Host, Host]) -> None:
    one, two = pair
    one.run(f"nohup sh -c 'sleep 300; : {MARK}' >/dev/null 2>&1 &")
    wait_until(lambda: any(MARK in line for _, line in one.processes()), "the program starts")  # no line while it execs
    assert two.processes() == []
    assert MARK not in two.run("cat /proc/*/cmdline | tr '\\0' ' '").stdout
    assert "pytest" not in one.run("cat /proc/*/cmdline | tr '\\0' ' '").stdout
    one.kill_all()
    assert one.processes() == []


def test_a_host_has_a_disk_of_its_own_without_the_checkout_and_the_machine_s_home(pair: tuple[Host, Host]) -> None:
    one, two = pair
    one.run(f"echo here > /etc/{MARK}; echo here > {one.data}/{MARK}")
    assert not (two.root / "etc" / MARK).exists() and not Path("/etc", MARK).exists()
    assert one.run(f"test -e {REPOSITORY}", check=False).returncode == 1
    assert set(one.run("ls -A /root").stdout.split()) <= {".bashrc", ".profile", ".ssh", "autodl-tmp", "miniconda3"}
    one.run(f"rm /etc/{MARK} {one.data}/{MARK}")


def test_the_provider_s_python_is_whole_and_a_venv_made_from_it_sees_its_packages(pair: tuple[Host, Host]) -> None:
    host = pair[0]
    where = "import sys, importlib.util as u; print(sys.prefix, sys.base_prefix, u.find_spec('torch').origin)"
    prefix, base, torch = host.run(f'/root/miniconda3/bin/python3.11 -c "{where}"').stdout.split()
    assert (prefix, base) == ("/root/miniconda3", "/root/miniconda3")
    assert torch.startswith("/root/miniconda3/lib/python3.11/site-packages/torch/")
    assert "/root/miniconda3/lib" in host.run("/root/miniconda3/bin/pip --version").stdout
    host.run("/root/miniconda3/bin/python -m venv --without-pip --system-site-packages /root/autodl-tmp/venv")
    assert host.run("/root/miniconda3/bin/python -m ensurepip --version").stdout.startswith("pip ")
    prefix, base, torch = host.run(f'/root/autodl-tmp/venv/bin/python -c "{where}"').stdout.split()
    assert (prefix, base) == ("/root/autodl-tmp/venv", "/root/miniconda3") and "miniconda3" in torch
    host.run("rm -r /root/autodl-tmp/venv")


@pytest.mark.parametrize(
    ("python", "has_system", "has_miniconda"),
    [("both", True, True), ("system", True, False), ("miniconda", False, True), ("none", False, False)],
)
def test_a_host_has_the_pythons_that_were_asked_for(
    world: Lab, python: str, has_system: bool, has_miniconda: bool
) -> None:
    host = world.add(python=python)[0]
    assert (host.run("python3 -c 1", check=False).returncode == 0) == has_system
    assert (host.run("/root/miniconda3/bin/python -c 1", check=False).returncode == 0) == has_miniconda
    if not has_miniconda:
        host.with_miniconda()
        assert host.run("/root/miniconda3/bin/python -c 1").returncode == 0, "it comes while the host runs"
    world.remove(host)
    assert host not in world.hosts


# Hosts that nobody has provisioned have no Python of ours.
PING = ["gpu_hosts", "-m", "ansible.builtin.ping", "-e", "ansible_python_interpreter=/usr/bin/python3"]


def test_ansible_reaches_all_hosts_through_the_inventory(world: Lab, tmp_path: Path) -> None:
    inventory = world.write_inventory(tmp_path, marked=7)
    rows = yaml.safe_load(inventory.read_text(encoding="utf-8"))["gpu_hosts"]["hosts"]
    assert set(rows) == {host.name for host in world.hosts} and rows["box1"]["marked"] == 7
    done = world.run(["ansible", "-i", str(inventory), *PING], cwd=REPOSITORY)
    assert done.returncode == 0 and done.stdout.count("ping: pong") == len(world.hosts), done.stdout + done.stderr


# -- controllers ---------------------------------------------------------------------------------------------------


def test_a_lost_controller_takes_processes_of_every_session_along(world: Lab, tmp_path: Path) -> None:
    script = f"echo started; setsid sh -c 'sleep 300; : {tmp_path}' & sh -c 'sleep 300; : {tmp_path}'"
    controller = world.controller(["sh", "-c", script], cwd=tmp_path)
    controller.wait_for("started")
    wait_until(lambda: len(traces(f": {tmp_path}")) >= 2, "both run")
    controller.lose()
    assert controller.returncode == 137 and controller.output == "started\n"
    assert wait_until(lambda: not traces(f": {tmp_path}"), "both are gone")


@pytest.mark.parametrize("tty", [False, True])
def test_an_interrupt_reaches_the_command_as_ctrl_c_does(world: Lab, tty: bool) -> None:
    code = (
        "import sys, time\nprint(sys.stdin.isatty(), flush=True)\n"
        "try: time.sleep(300)\nexcept KeyboardInterrupt: sys.exit(41)"
    )
    controller = world.controller([sys.executable, "-c", code], tty=tty)
    controller.wait_for(str(tty))
    controller.interrupt()
    assert controller.wait(30) == 41


def test_a_controller_tells_its_exit_status_and_what_it_said(world: Lab) -> None:
    controller = world.controller(["sh", "-c", "echo out; echo err >&2; echo $X $HOME; exit 5"], env={"X": "seen"})
    assert controller.wait(30) == 5
    assert controller.output.splitlines() == ["out", "err", f"seen {world.home}"]


# -- faults --------------------------------------------------------------------------------------------------------


def test_a_cut_link_answers_nothing_and_a_session_lives_through_it(world: Lab, box: Host) -> None:
    box.run("mkfifo /tmp/go")
    session = world.controller(["ssh", box.name, "echo one; read -r _ < /tmp/go; echo two"])
    session.wait_for("one")
    box.cut()
    refused = world.ssh(box, "true")
    assert refused.returncode == 255 and "timed out" in refused.stderr
    box.run("echo > /tmp/go")
    assert session.returncode is None and "two" not in session.output
    box.mend()
    session.wait_for("two")
    assert session.wait(30) == 0 and hears(world, box)


def test_cut_when_cuts_at_the_marker(world: Lab, box: Host) -> None:
    box.run("(sleep 0.2; touch /tmp/marker) >/dev/null 2>&1 &")
    box.cut_when((box.root / "tmp/marker").exists)
    assert not hears(world, box)
    with pytest.raises(LabError, match=box.name):
        box.cut_when(lambda: False, seconds=0.1)


@pytest.mark.parametrize(("state", "kept"), [("keep", True), ("lose", False)])
def test_a_power_loss_ends_everything_and_the_host_comes_back_another_boot(
    world: Lab, box: Host, state: str, kept: bool
) -> None:
    before = box.run("cat /proc/sys/kernel/random/boot_id").stdout
    box.run(
        f"mkdir -p {box.data}/x/outputs/state {box.data}/x/outputs/logs; touch {box.data}/x/outputs/state/plan.json"
    )
    box.run("nohup setsid sleep 300 >/dev/null 2>&1 &")
    session = world.controller(["ssh", "-o", "ServerAliveInterval=2", box.name, "echo in; sleep 300"])
    session.wait_for("in")
    box.power_off(state)
    assert not box.is_on and box.processes() == []
    with pytest.raises(LabError, match="off"):
        box.run("true")
    assert session.returncode is None, "the other side was told of the power loss"
    box.power_on()
    assert hears(world, box) and box.processes() == []
    assert box.run("cat /proc/sys/kernel/random/boot_id").stdout != before
    assert (box.root / "root/autodl-tmp/x/outputs/state/plan.json").exists() == kept
    assert (box.root / "root/autodl-tmp/x/outputs/logs").is_dir()


def test_a_frozen_host_does_nothing_until_it_thaws(world: Lab, box: Host) -> None:
    if reason := world.missing("freeze"):
        pytest.skip(reason)
    box.run("nohup sh -c 'while :; do date +%N > /tmp/beat; done' >/dev/null 2>&1 &")
    beat = box.root / "tmp/beat"
    wait_until(beat.exists, "the host counts")
    box.freeze()
    frozen = beat.stat().st_mtime_ns
    with pytest.raises(subprocess.TimeoutExpired):
        world.ssh(box, "true", timeout=1)
    assert beat.stat().st_mtime_ns == frozen
    box.thaw()
    wait_until(lambda: beat.stat().st_mtime_ns != frozen, "the host counts again")
    assert hears(world, box)


def test_a_frozen_host_can_lose_its_power(world: Lab, box: Host) -> None:
    if reason := world.missing("freeze"):
        pytest.skip(reason)
    box.freeze()
    box.power_off()
    box.power_on()
    assert hears(world, box)


def test_a_full_disk_takes_nothing_and_is_freed(box: Host) -> None:
    box.run(f"head -c 100000 /dev/zero > {box.data}/kept")
    box.fill_disk()
    refused = box.run(f"head -c 100000 /dev/zero > {box.data}/more", check=False)
    assert "No space left on device" in refused.stderr
    assert box.run(f"wc -c < {box.data}/kept").stdout.strip() == "100000"
    box.fill_disk(leave_bytes=1 << 20)
    box.run(f"head -c 900000 /dev/zero > {box.data}/more")
    box.free_disk()
    box.run(f"head -c 5000000 /dev/zero > {box.data}/more")
    assert not (box.root / "root/autodl-tmp/.filler").exists()


def test_an_empty_disk_can_be_full_too(box: Host) -> None:
    box.fill_disk()
    assert "No space" in box.run(f"echo x > {box.data}/new", check=False).stderr
    box.free_disk()
    box.run(f"echo x > {box.data}/new")


def test_without_inodes_there_is_space_but_no_new_file(box: Host) -> None:
    box.run(f"echo x > {box.data}/old")
    box.fill_inodes()
    assert "No space" in box.run(f"echo x > {box.data}/new", check=False).stderr
    box.run(f"head -c 100000 /dev/zero > {box.data}/old")
    box.free_inodes()
    box.run(f"echo x > {box.data}/new")


def test_the_kernel_kills_what_exceeds_the_memory_and_nothing_else(world: Lab, box: Host) -> None:
    if reason := world.missing("memory"):
        pytest.skip(reason)
    box.limit_memory(256 << 20)
    box.run("nohup sleep 300 >/dev/null 2>&1 &")
    assert box.run(memory_hog(64 << 20)).stdout == f"{64 << 20}\n"
    assert box.oom_kills() == 0
    assert box.run(memory_hog(512 << 20), check=False).returncode == 137
    over_ssh = world.ssh(box, f"{memory_hog(512 << 20)}; exit $?")
    assert over_ssh.returncode == 137 and box.oom_kills() == 2
    assert [line for _, line in box.processes()] == ["sleep 300"]
    limits = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null"
    assert box.run(limits, check=False).stdout == f"{256 << 20}\n", "the host sees its limit"
    box.limit_memory(None)
    box.run(memory_hog(512 << 20))


def test_a_changed_host_key_stops_ssh_until_it_is_pinned(world: Lab, box: Host) -> None:
    old = box.public_key()
    box.change_host_key()
    refused = world.ssh(box, "true")
    assert refused.returncode == 255 and "REMOTE HOST IDENTIFICATION HAS CHANGED" in refused.stderr
    world.pin_keys()
    assert hears(world, box) and box.public_key() != old


def test_a_password_is_the_only_way_in_until_keys_are_back(world: Lab, box: Host) -> None:
    box.password_only("a secret")
    refused = world.ssh(box, "true")
    assert refused.returncode == 255 and "Permission denied (password)" in refused.stderr
    ask = world.folder / "askpass"
    for secret, accepted in (("a secret", True), ("another", False)):
        ask.write_text(f"#!/bin/sh\necho '{secret}'\n")
        ask.chmod(0o700)
        env = {"SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force"}
        done = world.run(["ssh", "-o", "NumberOfPasswordPrompts=1", box.name, "true"], env=env)
        assert (done.returncode == 0) == accepted, done.stderr
    assert "ansible_ssh_private_key_file" not in world.inventory(box)["gpu_hosts"]["hosts"][box.name]
    box.key_only()
    assert hears(world, box)


def test_a_noisy_login_talks_over_every_command(world: Lab, box: Host) -> None:
    box.noisy_login()
    done = world.ssh(box, "echo answer")
    assert done.stdout.endswith("\nanswer\n") and "Welcome" in done.stdout and "mail" in done.stderr
    box.quiet_login()
    assert world.ssh(box, "echo answer").stdout == "answer\n"


def test_a_session_sees_the_wrong_clock_and_the_host_the_right_one(world: Lab, box: Host) -> None:
    try:
        box.skew_clock(-86400)
    except LabError as error:
        pytest.skip(str(error))
    seen = int(world.ssh(box, "date +%s").stdout)
    assert abs(seen - (int(box.run("date +%s").stdout) - 86400)) < 600
    box.skew_clock(0)
    assert abs(int(world.ssh(box, "date +%s").stdout) - time.time()) < 600


# -- proxy ---------------------------------------------------------------------------------------------------------


def through(world: Lab, box: Host, limits: dict[str, object]) -> tuple[object, Callable[..., object]]:
    proxy = world.proxy(box, **limits)
    ssh = ["ssh", "-o", "BatchMode=yes", "-p", str(proxy.port), f"root@{proxy.address}"]
    return proxy, lambda command, **more: world.run([*ssh, command], **more)


def test_a_proxy_passes_everything_on_and_counts(world: Lab, box: Host) -> None:
    proxy, ssh = through(world, box, {})
    assert len(ssh("head -c 300000 /dev/zero").stdout) == 300000  # type: ignore[attr-defined]
    assert proxy.from_host_bytes > 300000 > proxy.to_host_bytes > 0  # type: ignore[attr-defined]


def test_a_proxy_cuts_after_so_many_bytes_as_often_as_asked(world: Lab, box: Host) -> None:
    proxy, ssh = through(world, box, {"cut_after_bytes": 100000, "times": 1})
    cut = ssh("head -c 300000 /dev/zero")
    assert cut.returncode == 255 and len(cut.stdout) < 100000  # type: ignore[attr-defined]
    assert proxy.from_host_bytes == 100000  # type: ignore[attr-defined]
    assert len(ssh("head -c 300000 /dev/zero").stdout) == 300000  # type: ignore[attr-defined]


@pytest.mark.parametrize("limits", [{"stall_after_bytes": 5000}, {"dead": True}])
def test_a_proxy_that_stalls_closes_nothing(world: Lab, box: Host, limits: dict[str, object]) -> None:
    proxy, ssh = through(world, box, limits)
    with pytest.raises(subprocess.TimeoutExpired):
        ssh("head -c 300000 /dev/zero", timeout=3)
    assert proxy.from_host_bytes == limits.get("stall_after_bytes", 0)  # type: ignore[attr-defined]


# -- images and what is left ---------------------------------------------------------------------------------------


def test_a_snapshot_starts_hosts_that_go_on_from_it_and_may_be_snapshot_again(world: Lab, tmp_path: Path) -> None:
    first = world.add()[0]
    first.run(f"mkdir -p /srv/made/inner {first.data}/kept; echo 1 > /srv/made/inner/file; rm /etc/debian_version")
    first.run(f"mv /usr/share/doc /usr/share/moved; ln -s kept {first.data}/link")
    image = first.snapshot(tmp_path / "image")
    world.remove(first)
    second = world.add(image=image)[0]
    assert hears(world, second)
    assert second.run(f"cat /srv/made/inner/file; readlink {second.data}/link").stdout.split() == ["1", "kept"]
    assert second.run("ls /etc/debian_version /usr/share/doc", check=False).stdout == ""
    assert second.run("ls /usr/share/moved | wc -l").stdout != "0\n"
    second.run("mv /srv/made /srv/renamed; echo 2 >> /srv/renamed/inner/file")
    again = second.snapshot(tmp_path / "again")
    third = world.add(image=again)[0]
    assert third.run("cat /srv/renamed/inner/file; ls /srv").stdout.split() == ["1", "2", "renamed"]
    assert (image / "system/srv/made/inner/file").read_text() == "1\n", "an image is only read"
    for host in (second, third):
        world.remove(host)


def test_two_labs_do_not_meet_and_nothing_is_left_of_them(tmp_path: Path) -> None:
    with Lab(tmp_path / "one", hosts=1) as one, Lab(tmp_path / "two", hosts=1) as two:
        assert one.hosts[0].address == two.hosts[0].address
        for lab in (one, two):
            lab.hosts[0].run(f"echo {lab.folder.name} > /root/which")
        assert [lab.ssh(lab.hosts[0], "cat /root/which").stdout for lab in (one, two)] == ["one\n", "two\n"]
        controller = one.controller(["sleep", "300"])
        one.hosts[0].run("nohup setsid sleep 300 >/dev/null 2>&1 &")
        groups = [*one.groups.values(), *two.groups.values()]
        spaces = namespaces_of(one) | namespaces_of(two)
        assert spaces <= used_namespaces() and traces(str(tmp_path)) and all(group.is_dir() for group in groups)
    assert controller.returncode == 137
    assert not spaces & (used_namespaces() - used_namespaces_of_this_process())
    assert not any(group.exists() for group in groups)
    assert wait_until(lambda: not traces(str(tmp_path)), "no process or mount names the folder")


def used_namespaces_of_this_process() -> set[tuple[str, int]]:
    return {(kind, os.stat(f"/proc/self/ns/{kind}").st_ino) for kind in ("net", "mnt", "pid")}


HOLDER = """
import sys, time
from pathlib import Path
from tests.lab import Lab
with Lab(Path(sys.argv[1]), hosts=1) as lab:
    lab.controller(["sleep", "300"])
    lab.hosts[0].run("nohup setsid sleep 300 >/dev/null 2>&1 &")
    if sys.argv[2] == "frozen" and not lab.missing("freeze"):
        lab.hosts[0].freeze()
    print(*lab.groups.values(), flush=True)
    time.sleep(300)
"""


@pytest.mark.parametrize("how", ["running", "frozen"])
def test_nothing_is_left_of_a_lab_whose_process_was_killed(tmp_path: Path, how: str) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lab"), how], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout
    groups = [Path(group) for group in holder.stdout.readline().split()]
    assert traces(str(tmp_path)), "the lab runs"
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert wait_until(lambda: not traces(str(tmp_path)), "everything is gone")
    assert wait_until(lambda: not any(group.exists() for group in groups), "no control group is left")


# -- the commands --------------------------------------------------------------------------------------------------


def command(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.lab", *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
        check=False, **more,  # type: ignore[call-overload]
    )  # fmt: skip


@pytest.fixture
def standing(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "standing"
    done = command("up", "--folder", str(folder), "--hosts", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder}/hosts.yml\n"
    yield folder
    command("down", "--folder", str(folder))


def test_a_lab_outlives_its_command_and_is_found_through_its_folder(standing: Path) -> None:
    folder = str(standing)
    assert command("exec", "--folder", folder, "--", "ssh", "box2", "hostname").stdout == "box2\n"
    assert command("exec", "--folder", folder, "--", "sh", "-c", "exit 7").returncode == 7
    ansible = [f"{sys.prefix}/bin/ansible", "-i", f"{folder}/hosts.yml", *PING]
    for inside in ([], [sys.executable, "-m", "tests.lab", "exec", "--folder", folder, "--"]):
        done = subprocess.run([*inside, *ansible], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
        assert done.stdout.count("ping: pong") == 2, done.stdout + done.stderr
    twice = command("up", "--folder", folder)
    assert twice.returncode == 2 and "already" in twice.stderr
    assert command("down", "--folder", folder).returncode == 0
    assert wait_until(lambda: not traces(folder), "everything is gone")
    gone = command("exec", "--folder", folder, "--", "true")
    assert gone.returncode == 2 and gone.stderr.startswith("error: no lab was started in")
    assert command("down", "--folder", folder).returncode == 0, "nothing to remove is no error"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_lab_to_play_with_prints_its_inventory_and_goes_with_its_command(tmp_path: Path, number: int) -> None:
    folder = tmp_path / "play"
    player = subprocess.Popen(
        [sys.executable, "-m", "tests.lab", "--folder", str(folder)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert player.stdout
    said = []
    for line in player.stdout:
        said.append(line)
        if "Ctrl-C" in line:
            break
    text = "".join(said)
    assert "box1: root@10.77.0.11 port 2222" in text and "ansible-playbook -i" in text
    assert command("exec", "--folder", str(folder), "--", "ssh", "box1", "hostname").stdout == "box1\n"
    player.send_signal(number)
    assert player.wait(60) == (0 if number == signal.SIGINT else 128 + number)
    player.stdout.close()
    assert wait_until(lambda: not traces(str(folder)), "everything is gone")
