"""One tiny base for the whole test run, the rows that it can learn, and hosts on which the trainer really runs.

Torch is imported inside the fixtures only: tests that do not ask for them stay light.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before huggingface_hub is imported: no test may reach for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

REPOSITORY = Path(__file__).resolve().parents[1]
DEADLINE_SECONDS = 180.0  # generous: the machine is shared, and imports take most of a run
CORPUS = """# 静电场
电场强度等于单位正电荷所受的力，方向与正电荷受力方向相同。高斯定理：$\\oint E\\cdot dS = q/\\varepsilon_0$。
点电荷的电场 $E = kq/r^2$ 随距离的平方减小。导体内部的电场为零，电荷分布在表面。
法拉第定律：感应电动势等于磁通量的变化率的负值，$\\mathcal{E} = -d\\Phi/dt$。
"""
# Short enough for a model of 32 units to learn word for word in seconds.
LESSONS = {
    "style": [("电场强度？", "单位电荷受的力"), ("导体内部？", "电场为零"), ("高斯定理？", "电通量等于 q/ε₀")],
    "writing": [("摘要？", "先写目的"), ("引用？", "注明来源")],
}
HELD_OUT = {"style": [("点电荷？", ["平方", "减小"]), ("法拉第？", ["变化率"])], "writing": [("结论？", ["总结"])]}
# What makes the tiny base learn its lessons; the shipped defaults are those of a GPU host.
LEARNING: dict[str, Any] = {
    "use_qlora": False,
    "compute_dtype": "float32",
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 5,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-2,
    "lora_dropout": 0.0,
    "max_steps": 60,
    "max_new_tokens": 24,
    "max_length": 256,
}


def chat(row_id: str, question: str, answer: str) -> dict[str, Any]:
    """A training row of one question and its answer."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": row_id, "mode": "test", "messages": turns}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_data(root: Path) -> Path:
    """A data root in which every stage has a few short rows; returns it."""
    rows = {
        name: [chat(f"{name}-{number}", *lesson) for number, lesson in enumerate(lessons, 1)]
        for name, lessons in LESSONS.items()
    }
    processed = root / "training" / "processed"
    write_rows(processed / "style_sft_sample.jsonl", rows["style"][:2])
    write_rows(processed / "style_sft.jsonl", rows["style"])
    write_rows(processed / "writing_sft.jsonl", rows["writing"])
    write_rows(processed / "all_sft.jsonl", rows["style"] + rows["writing"])
    for name, asked in HELD_OUT.items():
        benchmark = [
            {"id": f"held-{name}-{number}", "type": "concept", "query": query, "expected": {"key_points": points}}
            for number, (query, points) in enumerate(asked, 1)
        ]
        write_rows(root / "training" / "eval" / f"{name}_benchmark.jsonl", benchmark)
    return root


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "course.md").write_text(CORPUS, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_recipe() -> Any:
    from trainer.base import Recipe

    return Recipe(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=512, block_tokens=32, batch_size=2, steps=20,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path, tiny_recipe: Any) -> Path:
    """The folder of a base model that is built once and only read by the tests."""
    from trainer.base import build

    return build(tmp_path_factory.mktemp("models"), tiny_corpus, tiny_recipe, say=lambda text: None)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_base: Path) -> Any:
    from trainer.encoding import load_tokenizer

    return load_tokenizer(str(tiny_base))


@pytest.fixture(scope="session")
def tiny_parameters(tiny_base: Path) -> Callable[..., Any]:
    """Makes Parameters for the tiny base from a few changes."""
    from trainer.config import Parameters

    return lambda **changes: Parameters(**{"model_name_or_path": str(tiny_base), **LEARNING, **changes})


@pytest.fixture(scope="session")
def tiny_rows() -> list[dict[str, Any]]:
    return [chat(f"style-{number}", *lesson) for number, lesson in enumerate(LESSONS["style"], 1)]


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root that is only read by the tests."""
    return write_data(tmp_path_factory.mktemp("data"))


class Host:
    """A project root on which `python -m trainer` really runs, as Ansible would call it."""

    def __init__(self, code: Path, root: Path, data_root: Path, base: Path) -> None:
        from trainer.state import Layout

        self.code = code
        self.root = root
        self.data_root = data_root
        self.base = base
        self.layout = Layout(root)
        self.supervisors: list[subprocess.Popen[str]] = []

    def environment(self) -> dict[str, str]:
        # The parameters and switches of whoever runs the tests must not reach the run.
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        return {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "trainer", "--project-root", str(self.root), *words]

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), cwd=self.code, env=self.environment(), input=stdin, capture_output=True,
            text=True, timeout=DEADLINE_SECONDS, check=False,
        )  # fmt: skip

    def ask(
        self, *stages: str, gate: str = "strict", skip_sample: bool = False, **changes: Any
    ) -> subprocess.CompletedProcess[str]:
        """Submit a plan, which may be refused."""
        values = {"model_name_or_path": str(self.base), **LEARNING, **changes}
        request = {
            "stages": list(stages), "gate": gate, "skip_sample": skip_sample, "data_root": str(self.data_root),
            "overrides": {name: {"value": value, "source": "test"} for name, value in values.items()},
        }  # fmt: skip
        return self.run("submit", "--input", "-", "--json", stdin=json.dumps(request))

    def submit(self, *stages: str, **request: Any) -> dict[str, Any]:
        """Submit a plan that must be accepted; returns the answer."""
        done = self.ask(*stages, **request)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def status(self) -> dict[str, Any]:
        done = self.run("status", "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def start(self, plan_id: str) -> subprocess.Popen[str]:
        supervisor = subprocess.Popen(
            self.command("supervise", "--plan", plan_id), cwd=self.code, env=self.environment(),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        self.supervisors.append(supervisor)
        return supervisor

    def carry_out(self, *stages: str, **request: Any) -> tuple[int, str]:
        """Submit and supervise a plan to its end; returns (exit code of the supervisor, standard error)."""
        answer = self.submit(*stages, **request)
        assert answer["action"] == "start"
        supervisor = self.start(answer["plan_id"])
        _, errors = supervisor.communicate(timeout=DEADLINE_SECONDS)
        return supervisor.returncode, errors

    def events(self) -> list[dict[str, Any]]:
        from trainer.state import read_events

        return read_events(self.layout)[0]

    def wait_for(self, wanted: Callable[[dict[str, Any]], bool], count: int = 1) -> dict[str, Any]:
        """The `count`-th event that is wanted; fails at the deadline, or when the supervisor ended without it."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            ended = self.supervisors[-1].poll() is not None
            found = [event for event in self.events() if wanted(event)]
            if len(found) >= count:
                return found[count - 1]
            assert not ended, f"the supervisor ended before: {self.events()[-3:]}"
            time.sleep(0.05)
        raise AssertionError(f"not seen in {DEADLINE_SECONDS:g} s: {self.events()[-3:]}")

    def wait_for_training(self, stage: str) -> None:
        self.wait_for(lambda event: event["event"] == "progress" and event["stage"] == stage and "step" in event)

    def plan(self) -> dict[str, Any]:
        return dict(json.loads(self.layout.plan.read_text(encoding="utf-8")))

    def states(self) -> dict[str, dict[str, Any]]:
        """The stage states as the files tell them."""
        from trainer.stages import load
        from trainer.state import read_stage

        found = {name: read_stage(self.layout, name) for name in load().names}
        return {name: state for name, state in found.items() if state}

    def report(self, stage: str) -> dict[str, Any]:
        from trainer.stages import load

        folder = self.layout.adapters / load().stage(stage).adapter
        return dict(json.loads((folder / f"eval_report_{stage}.json").read_text(encoding="utf-8")))

    def clone(self, root: Path) -> Host:
        """A host that stands where this one does, to go on from."""
        shutil.copytree(self.root, root, dirs_exist_ok=True)
        return Host(self.code, root, self.data_root, self.base)

    def close(self) -> None:
        for supervisor in self.supervisors:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(supervisor.pid, signal.SIGKILL)
            supervisor.wait()
            if supervisor.stderr:
                supervisor.stderr.close()


def gone(who: dict[str, Any], seconds: float = 30.0) -> bool:
    """Whether the process of this identity ends in time."""
    from trainer.process import is_alive

    deadline = time.monotonic() + seconds
    while is_alive(who) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_alive(who)


@pytest.fixture(scope="session")
def is_gone() -> Callable[..., bool]:
    return gone


@pytest.fixture(scope="session")
def code_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trainer as a host has it: a copy, so that an edit during the tests does not change a running plan's code."""
    folder = tmp_path_factory.mktemp("code")
    shutil.copytree(REPOSITORY / "trainer", folder / "trainer", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def make_host(
    tmp_path_factory: pytest.TempPathFactory, code_copy: Path, tiny_base: Path, tiny_data: Path
) -> Iterator[Callable[..., Host]]:
    """Makes hosts on the tiny base; what still runs on them is ended with the module."""
    hosts: list[Host] = []

    def make(like: Host | None = None) -> Host:
        root = tmp_path_factory.mktemp("host")
        hosts.append(like.clone(root) if like else Host(code_copy, root, tiny_data, tiny_base))
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


@pytest.fixture(scope="session")
def finished_line(tmp_path_factory: pytest.TempPathFactory, code_copy: Path, tiny_base: Path) -> Iterator[Host]:
    """A host (with data of its own) whose four stages have passed on their trained questions.

    `host.watched` holds (exit code, workers seen by pid). Tests may go on from here, in the order of a file.
    """
    data = write_data(tmp_path_factory.mktemp("line-data"))
    host = Host(code_copy, tmp_path_factory.mktemp("line"), data, tiny_base)
    answer = host.submit(gate_questions="trained")
    supervisor = host.start(answer["plan_id"])
    workers: set[int] = set()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while supervisor.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            workers.add(host.plan().get("worker", {}).get("pid", 0))
        time.sleep(0.1)
    host.watched = (supervisor.poll(), workers - {0})  # type: ignore[attr-defined]
    yield host
    host.close()


@pytest.fixture
def model_hub(tiny_base: Path) -> Iterator[Any]:
    """A hub on this machine that holds the tiny base."""
    from tests.model_hub import ModelHub, files_of

    found = ModelHub().start()
    found.publish(files_of(tiny_base))
    yield found
    found.stop()
