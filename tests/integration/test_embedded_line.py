"""The real playbook on the embedded host: real training, generation, gates, reports and collection.

The base and the rows are the tests' own small ones (tests/conftest.py), so that a stage takes seconds. The
tests go on from one another in the order of the file, as a user's evening would.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LEARNING, REPOSITORY, chat, write_data, write_rows

STAGES = {"sample": "sample", "style": "style", "writing": "writing", "all": "multitask"}  # stage: adapter's name


class Line:
    """The playbook with its own project root, data and output folder."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.host = folder / "host"
        self.data = write_data(folder / "data")
        self.outputs = folder / "outputs"
        self.variables = {
            "gpu_host_venv_dir": sys.prefix,
            "artifacts_output_dir": str(self.outputs),
            "trainer_data_root": str(self.data),
            **{f"trainer_hp_{name}": value for name, value in LEARNING.items()},
            "trainer_hp_model_name_or_path": str(base),
        }

    def run(self, *words: str, environment: dict[str, str] | None = None, **variables: Any) -> Any:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        return subprocess.run(
            [
                str(Path(sys.executable).parent / "ansible-playbook"), "playbooks/train_all.yml",
                "-e", json.dumps({**self.variables, **variables}), *words,
            ],
            cwd=REPOSITORY, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400, check=False,
            env={
                **kept, "TRAIN_SYNC_PROJECT_ROOT": str(self.host), "ANSIBLE_NOCOLOR": "1", "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1", **(environment or {}),
            },
        )  # fmt: skip

    def states(self) -> dict[str, dict[str, Any]]:
        folder = self.host / "outputs" / "state"
        return {name: json.loads((folder / f"{name}.json").read_text()) for name in STAGES}

    def trainings(self) -> list[str]:
        """The stages that were ever trained, in order."""
        lines = (self.host / "outputs" / "state" / "events.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        return [e["stage"] for e in events if e["event"] == "phase" and e["phase"] == "training"]


def error_of(done: Any) -> str:
    """The last line of standard error, which tells the user what is wrong."""
    return str(done.stderr.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Line]:
    found = Line(tmp_path_factory.mktemp("line"), tiny_base)
    yield found
    subprocess.run(
        [sys.executable, "-m", "trainer", "--project-root", str(found.host), "cancel"],
        cwd=REPOSITORY, capture_output=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def first(line: Line) -> Any:
    """The first run; every later test stands on it."""
    return line.run()


def test_wrong_parameter_is_refused_before_anything_is_made(line: Line) -> None:
    done = line.run(trainer_hp_learning_rte=1e-4)
    assert done.returncode == 2
    assert "did you mean learning_rate?" in error_of(done)
    assert not line.host.exists()


def test_first_run_trains_every_stage_and_ends_with_where_things_are(line: Line, first: Any) -> None:
    assert first.returncode == 0, first.stdout + first.stderr
    assert {name: state["status"] for name, state in line.states().items()} == dict.fromkeys(STAGES, "passed")
    assert line.trainings() == list(STAGES)
    tail = "\n".join(first.stdout.strip().splitlines()[-3:])
    assert re.search(r"Summary: .*TRAINING_SUMMARY\.md", tail)
    assert str(line.outputs / "adapter") in tail
    assert re.search(r"Best model: adapter_\w+|Best model: none", tail)


def test_terminal_shows_steps_and_answers_without_retry_noise(first: Any) -> None:
    assert re.search(r"^style +step \d+/60 +loss \d", first.stdout, re.MULTILINE)
    assert re.search(r"^style +answered \d+/\d+ \(", first.stdout, re.MULTILINE)
    assert "RETRYING" not in first.stdout + first.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_every_promised_file_is_on_both_sides(line: Line, first: Any, stage: str) -> None:
    for outputs in (line.host / "outputs", line.outputs):
        folder = outputs / "adapter" / f"adapter_{STAGES[stage]}"
        names = {path.name for path in folder.iterdir()}
        assert {
            "adapter_model.safetensors", "adapter_config.json", "training_config.json",
            f"eval_report_{stage}.md", f"eval_report_{stage}.json", f"predictions_{stage}.jsonl",
        } <= names  # fmt: skip
        assert not [name for name in names if name.endswith((".bin", ".pt"))]
        assert list((outputs / "logs").glob(f"train_{stage}_*.log"))
        assert (outputs / "state" / f"{stage}.json").is_file()
        assert {"plan.json", "events.jsonl"} <= {path.name for path in (outputs / "state").iterdir()}


def test_run_folder_holds_what_its_manifest_says(line: Line, first: Any) -> None:
    (run,) = (line.outputs / "training_sync").glob("run_*")
    listed = dict(reversed(row.split("  ")) for row in (run / "MANIFEST.sha256").read_text().splitlines())
    present = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()} - {"MANIFEST.sha256"}
    assert set(listed) == present
    for name, expected in listed.items():
        assert hashlib.sha256((run / name).read_bytes()).hexdigest() == expected
    assert {"TRAINING_SUMMARY.md", "ISSUES.md", "issues.jsonl", "eval_report_style.md"} <= present


def test_report_says_what_trained_questions_are_worth(line: Line, first: Any) -> None:
    report = (line.outputs / "adapter" / "adapter_style" / "eval_report_style.md").read_text()
    assert "a check of the pipeline, not of generalisation" in report
    measured = json.loads((line.outputs / "adapter" / "adapter_style" / "eval_report_style.json").read_text())
    assert [item["questions"] for item in measured["evaluations"]] == ["trained", "held_out", "held_out"]
    assert all(item["base"]["key_point_coverage"]["n"] for item in measured["evaluations"])
    assert measured["parameters"]["learning_rate"]["source"] == "variable trainer_hp_learning_rate"


def test_second_run_changes_nothing_and_says_why(line: Line, first: Any) -> None:
    before = line.states(), line.trainings()
    done = line.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"changed=0\b", done.stdout)
    assert len(re.findall(r"^\w+ +up to date: .*data, base model, parameters", done.stdout, re.MULTILINE)) == 4
    assert (line.states(), line.trainings()) == before
    assert len(list((line.outputs / "training_sync").glob("run_*"))) == 1


def test_one_stage_by_its_tag(line: Line, first: Any) -> None:
    done = line.run("--tags", "style")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^style +up to date", done.stdout, re.MULTILINE)
    assert not re.search(r"^(sample|writing|all) ", done.stdout, re.MULTILINE)


def test_changed_data_of_one_stage_redoes_it_and_the_later_ones(line: Line, first: Any) -> None:
    rows = [chat("writing-1", "摘要？", "先写目的"), chat("writing-2", "引用？", "注明出处")]
    write_rows(line.data / "training" / "processed" / "writing_sft.jsonl", rows)
    done = line.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert line.trainings()[4:] == ["writing", "all"]
    assert len(re.findall(r"^(?:sample|style) +up to date", done.stdout, re.MULTILINE)) == 2


def test_bad_data_is_named_and_nothing_is_lost(line: Line, first: Any) -> None:
    path = line.data / "training" / "processed" / "style_sft.jsonl"
    good, before = path.read_text(), line.states()
    path.write_text(good + '{"id": "style-9", "messages": [\n')
    done = line.run()
    path.write_text(good)
    assert done.returncode == 2
    assert "style_sft.jsonl:4: broken JSON" in error_of(done)
    assert line.states() == before


def test_missing_model_is_named(line: Line, first: Any) -> None:
    before = line.states()
    done = line.run(trainer_hp_model_name_or_path="/nowhere/model")
    assert done.returncode == 2
    assert "'/nowhere/model' is not a folder of this host" in error_of(done)
    assert line.states() == before


def test_environment_counts_and_the_variable_beats_it(line: Line, first: Any) -> None:
    refused = line.run("--tags", "precheck", environment={"SEED": "many"})
    assert (refused.returncode, "environment SEED is 'many'" in error_of(refused)) == (2, True)
    accepted = line.run("--tags", "precheck", environment={"SEED": "42"})
    assert accepted.returncode == 0, accepted.stderr


def test_missed_gate_closes_the_rest_and_ends_with_6(line: Line, first: Any) -> None:
    trained = line.trainings()
    done = line.run(trainer_hp_gate_questions="held_out")
    assert done.returncode == 6, done.stdout + done.stderr
    assert "stage style missed its gate: key point coverage" in error_of(done)
    assert {name: state["status"] for name, state in line.states().items()} == {
        "sample": "passed", "style": "missed", "writing": "closed", "all": "closed",
    }  # fmt: skip
    assert line.trainings() == trained  # the weights are unchanged: only the score was made anew
    runs = sorted((line.outputs / "training_sync").glob("run_*"))
    assert "style" in (runs[-1] / "ISSUES.md").read_text()


def test_stage_behind_a_closed_gate_is_refused(line: Line, first: Any) -> None:
    done = line.run("--tags", "writing", trainer_hp_gate_questions="held_out")
    assert done.returncode == 3
    assert "stage style missed its gate" in error_of(done)


def test_warn_goes_on_and_still_ends_with_6(line: Line, first: Any) -> None:
    done = line.run(trainer_hp_gate_questions="held_out", trainer_gate="warn")
    assert done.returncode == 6
    assert all(state["status"] in ("passed", "missed") for state in line.states().values())


def test_skipped_sample_is_recorded_and_in_the_summary(line: Line, first: Any) -> None:
    done = line.run(environment={"TRAIN_SYNC_SKIP_SAMPLE": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert line.states()["sample"]["status"] == "skipped"
    runs = sorted((line.outputs / "training_sync").glob("run_*"), key=lambda path: path.stat().st_mtime)
    assert re.search(r"sample.*skipped", (runs[-1] / "TRAINING_SUMMARY.md").read_text())
