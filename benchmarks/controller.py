"""What the controller costs: a four-stage run over SSH beside the plan's own time there, and a run with nothing to do.

    python benchmarks/controller.py [--rounds 3]

Root only: the host is one of tests/lab, with the provider's torch and the tests' tiny base. Each round has a fresh host
that was provisioned before; seconds are wall time. The plan's own time is that between its first and its last event.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.conftest import CORPUS, make_recipe, write_data
from tests.integration.lab.remote import Remote, prepare
from tests.lab import Lab, available
from trainer.base import build


def timed(run: Callable[[], Any]) -> float:
    """Seconds of a run that must end well."""
    began = time.monotonic()
    done = run()
    seconds = time.monotonic() - began
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return seconds


def plan_seconds(remote: Remote) -> float:
    """The time between the start and the end of the plan, as the host's events tell."""
    when = {event["event"]: datetime.fromisoformat(event["time"]) for event in remote.events()}
    return (when["plan ended"] - when["plan started"]).total_seconds()


def measure(lab: Lab, folder: Path, base: Path, data: Path) -> dict[str, float]:
    """One round on a fresh host."""
    host = lab.add(python="miniconda")[0]
    prepare(host, base, data)
    remote = Remote(lab, host, folder)
    figures = {"provision": timed(lambda: remote.run(playbook="provision"))}
    figures["four stages over SSH"] = timed(remote.run)
    figures["of it the plan on the host"] = plan_seconds(remote)
    figures["the controller's share"] = figures["four stages over SSH"] - figures["of it the plan on the host"]
    figures["nothing to do"] = timed(remote.run)
    figures["status"] = timed(lambda: remote.run(playbook="status"))
    lab.remove(host)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    if reason := available():
        raise SystemExit(f"error: {reason}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        (folder / "corpus" / "course.md").write_text(CORPUS, encoding="utf-8")
        base = build(folder / "models", folder / "corpus", make_recipe(), say=lambda text: None)
        data = write_data(folder / "data")
        with Lab(folder / "lab", hosts=0) as lab:
            found = [measure(lab, folder / str(number), base, data) for number in range(rounds)]
    print("| what | min s | median s | max s |\n|---|---|---|---|")
    for what in found[0]:
        values = [figures[what] for figures in found]
        print(f"| {what} | {min(values):.1f} | {statistics.median(values):.1f} | {max(values):.1f} |")


if __name__ == "__main__":
    main()
