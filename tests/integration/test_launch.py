"""The launch over a connection that is lost at any of its calls, before or after the host has heard it."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.integration.line import Line

# An ssh that reaches this machine. Of the calls since the plan was submitted the one in `lose` is lost:
# `before N` is never heard, `after N` is carried out and its answer thrown away.
LOSING_SSH = """#!/bin/sh
here=$(dirname "$0")
for word; do [ "$word" = -O ] && exit 0; done
for word; do command=$word; done
case $command in *" submit "*) [ -e "$here/count" ] || echo 0 > "$here/count" ;; esac
if [ -e "$here/count" ]; then
  count=$(($(cat "$here/count") + 1)); echo $count > "$here/count"
  printf '%s\\n' "$command" | cut -c1-80 >> "$here/calls"
  case $(cat "$here/lose") in
    "before $count") echo "Shared connection to box closed." >&2; exit 255 ;;
    "after $count") sh -c "$command" > /dev/null 2>&1; echo "Shared connection to box closed." >&2; exit 255 ;;
  esac
fi
exec sh -c "$command"
"""
# submit, home, temporary folder, two files, their modes, the launch, status, cleaning, first look.
CALLS = (1, 2, 5, 7, 8, 9)


def run(line: Line, lose: str) -> subprocess.CompletedProcess[str]:
    ssh = line.folder / "ssh"
    ssh.write_text(LOSING_SSH)
    ssh.chmod(0o755)
    (line.folder / "lose").write_text(lose)
    own = {"ansible_connection": "ssh", "ansible_ssh_executable": str(ssh), "ansible_ssh_transfer_method": "piped"}
    (line.folder / "inventory" / "host_vars").mkdir()
    (line.folder / "inventory" / "host_vars" / "embedded.yml").write_text(json.dumps(own))
    line.outcomes(stage_seconds=0.3)
    return line.run("--tags", "style", "-e", "trainer_start_timeout_seconds=8")


def test_calls_of_a_launch_are_those_that_are_lost_below(line: Line) -> None:
    done = run(line, "none")
    assert done.returncode == 0, done.stdout + done.stderr
    calls = (line.folder / "calls").read_text().splitlines()
    launch = next(number for number, call in enumerate(calls, 1) if "ANSIBLE_ASYNC_DIR" in call)
    assert len(calls) >= CALLS[-1] > launch, calls
    assert not (line.host / "outputs" / "cache" / "ansible_async").exists()


@pytest.mark.parametrize("number", CALLS)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_connection_lost_at_any_call_starts_exactly_one(line: Line, moment: str, number: int) -> None:
    done = run(line, f"{moment} {number}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert line.state()["starts"] == 1
    assert "style: passed" in done.stdout
