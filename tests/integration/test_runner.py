"""ansible-runner as a CI calls it: the README's command and its Python example, word for word."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.line import MISSED, REPOSITORY, Line

BIN = Path(sys.executable).parent


def readme_block(language: str) -> str:
    """The code block of the README's CI section in this language."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n## In CI\n")[2].partition("\n## ")[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found, f"the README's CI section has no {language} block"
    return found[1]


def readme_envvars() -> dict[str, str]:
    """What the README tells to write into env/envvars."""
    return dict(yaml.safe_load(readme_block("yaml")))


class Pipeline:
    """A private data dir beside a checkout, as the README describes it."""

    def __init__(self, line: Line, **extravars: Any) -> None:
        self.line = line
        self.folder = line.folder.parent / "stagegate-ci"
        environment = self.folder / "env"
        environment.mkdir(parents=True)
        (environment / "envvars").write_text(yaml.safe_dump(readme_envvars()))
        if extravars:
            (environment / "extravars").write_text(yaml.safe_dump(extravars))
        shutil.copytree(line.folder / "inventory", self.folder / "inventory")
        # The shipped embedded host lies beside its inventory: here that is the checkout.
        (self.folder / "inventory" / "remote.yml").unlink(missing_ok=True)

    def environment(self, **more: str) -> dict[str, str]:
        inherited = self.line.environment(TRAIN_SYNC_PROJECT_ROOT=str(self.line.host), **more)
        return {**inherited, "PATH": f"{BIN}{os.pathsep}{inherited['PATH']}"}

    def call(self, words: list[str], **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=self.line.folder, env=self.environment(**more), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def command(self, old: str = "", new: str = "") -> list[str]:
        """The README's command for a shell, with one change."""
        command = readme_block("sh").strip()
        assert old in command
        return ["sh", "-c", command.replace(old, new, 1)]

    def artifacts(self) -> Path:
        (found,) = (self.folder / "artifacts").iterdir()
        return found

    def told(self) -> tuple[str, str]:
        folder = self.artifacts()
        return (folder / "rc").read_text(), (folder / "status").read_text()

    def events(self) -> list[dict[str, Any]]:
        found = [json.loads(path.read_text()) for path in (self.artifacts() / "job_events").glob("*.json")]
        return sorted(found, key=lambda event: event["counter"])


@pytest.fixture
def pipeline(line: Line) -> Pipeline:
    (line.folder / ".venv").resolve()
    line.outcomes(stage_seconds=0.1)
    return Pipeline(line, trainer_hp_num_train_epochs=3, gpu_host_venv_dir=sys.prefix)


def stage_results(events: list[dict[str, Any]]) -> dict[str, str]:
    """Status by stage, read from the events as a CI would."""
    answers = [(event["event_data"].get("res") or {}).get("answer") or {} for event in events]
    results = [answer["result"] for answer in answers if answer.get("result")]
    return {result["stage"]: result["status"] for result in results}


def test_command_of_the_readme_runs_one_stage_with_typed_variables(pipeline: Pipeline) -> None:
    done = pipeline.call(pipeline.command())
    assert done.returncode == 0, done.stdout
    assert pipeline.told() == ("0", "successful")
    (plan,) = pipeline.line.submitted()
    assert plan["stages"] == ["style"]
    assert plan["overrides"]["num_train_epochs"]["value"] == 3  # a number, not the text that -e would make of it
    assert stage_results(pipeline.events()) == {"style": "passed"}


def test_missed_gate_is_the_exit_status_of_the_pipeline(pipeline: Pipeline) -> None:
    pipeline.line.outcomes(stages={"style": MISSED}, stage_seconds=0.1)
    done = pipeline.call(pipeline.command())
    assert done.returncode == 6, done.stdout
    assert pipeline.told() == ("6", "failed")
    assert stage_results(pipeline.events()) == {"style": "missed"}
    assert "error: stage style: key point coverage 0.71 < 0.90" in done.stdout


@pytest.mark.parametrize(("outcome", "code"), [("passed", 0), ("missed", 6)])
def test_python_example_of_the_readme_ends_with_the_code(pipeline: Pipeline, outcome: str, code: int) -> None:
    pipeline.line.outcomes(stages={"style": MISSED} if outcome == "missed" else {}, stage_seconds=0.1)
    example = readme_block("python")
    assert len([row for row in example.splitlines() if row.strip()]) <= 10
    done = pipeline.call([sys.executable, "-c", example])
    assert done.returncode == code, done.stdout + done.stderr
    assert f"style: {outcome}" in done.stdout


def test_nobody_is_asked_although_runner_gives_a_terminal(pipeline: Pipeline) -> None:
    asking = pipeline.folder / "env" / "extravars"
    asking.write_text(asking.read_text() + "trainer_confirm_after_sample: true\n")
    done = pipeline.call(pipeline.command("--tags style", "--tags sample,style"))
    assert done.returncode == 2
    assert "there is no terminal to answer it on" in done.stdout


def test_vaulted_secret_reaches_no_artifact(pipeline: Pipeline, tmp_path: Path) -> None:
    canary = "canary-7d41e0"
    (tmp_path / "key").write_text("a vault key")
    vault = [str(BIN / "ansible-vault"), "encrypt_string", "--vault-password-file", str(tmp_path / "key")]
    sealed = pipeline.call([*vault, "--name", "trainer_hf_token", canary]).stdout
    extravars = pipeline.folder / "env" / "extravars"
    extravars.write_text(extravars.read_text() + sealed)
    unsealing = f"--vault-password-file {tmp_path / 'key'} -vvvv --tags"
    done = pipeline.call(pipeline.command("--tags", unsealing))
    assert done.returncode == 0, done.stdout
    everywhere = [path for path in pipeline.line.folder.parent.rglob("*") if path.is_file()]
    assert any("job_events" in path.parts for path in everywhere)
    assert [path for path in everywhere if canary.encode() in path.read_bytes()] == []
    assert canary not in done.stdout + done.stderr
