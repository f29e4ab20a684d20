"""The worker: keeps the base model loaded and carries out one stage job after another.

Jobs come as JSON lines on standard input, reports go as JSON lines to a pipe of the supervisor, which alone
writes states. Standard output and error belong to the stage's log. Torch is imported with the first job.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
import traceback
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import base as embedded
from trainer import (
    checkpoint,
    config,
    content,
    copies,
    credentials,
    digest,
    encoding,
    evaluate,
    fingerprint,
    hub,
    process,
    stages,
    state,
    steps,
)
from trainer.data import raise_errors, read_rows
from trainer.errors import InputError, TrainerError, TrainingFailed

if TYPE_CHECKING:
    from peft import PeftModel

    from trainer.model import Base

Job = dict[str, Any]
PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "tokenizers", "datasets")


class Worker:
    """The resident base and the way back to the supervisor."""

    def __init__(self, layout: state.Layout, report_descriptor: int) -> None:
        self.layout = layout
        self.report_stream = os.fdopen(report_descriptor, "w", encoding="utf-8", buffering=1)
        self.base: Base | None = None
        self.base_key: tuple[Any, ...] = ()

    def report(self, event: str, **fields: Any) -> None:
        """Tell the supervisor; a supervisor that is gone ends the worker (nothing trains unseen)."""
        line = json.dumps({"event": event, **fields}, ensure_ascii=False)
        self.report_stream.write(credentials.scrub(line, credentials.known(self.layout)) + "\n")

    def run(self) -> int:
        """Carry out jobs until standard input ends; after a failed job the process is not used again."""
        for line in sys.stdin:
            job = json.loads(line)
            redirect_output(self.layout.root / job["log"])
            try:
                result = self.carry_out(job)
            except Exception as problem:  # reported with its kind; the traceback stands in the log
                with contextlib.suppress(OSError):  # the disk of the log may be what failed
                    traceback.print_exc()
                kind = type(problem).__name__
                sentence = str(problem).strip().splitlines()[0] if str(problem).strip() else kind
                if not isinstance(problem, TrainerError):
                    sentence = f"{kind}: {sentence}"
                lines = problem.lines if isinstance(problem, TrainerError) else []
                with contextlib.suppress(OSError):
                    print("\n".join(lines), file=sys.stderr, flush=True)
                self.report("failed", kind=kind, message=sentence)
                return 1
            self.report("finished", result=result)
        return 0

    def carry_out(self, job: Job) -> dict[str, Any]:
        """Train (or only score) one stage into the job's fresh folder; returns what its state records."""
        table = stages.load()
        stage = table.stage(job["stage"])
        parameters = config.Parameters(**{name: item["value"] for name, item in job["parameters"].items()})
        data_root, folder = Path(job["data_root"]), Path(job["folder"])
        times = {}
        started = time.monotonic()
        self.report("phase", phase="loading")
        base = self.resident_base(parameters, Path(job["corpus"]))
        times["load_seconds"] = round(time.monotonic() - started, 3)

        numbered, findings = read_rows(data_root / stage.data, stage.data)
        raise_errors(findings)
        if digest.of_file(data_root / stage.data) != job["fingerprint"]["parts"]["data"]:
            raise InputError(f"{stage.data} changed after the plan had looked at it; submit the plan again")
        if job["mode"] == "train":
            adapted, training = self._train(base, stage, parameters, numbered, job)
        else:
            adapted, training = self._reload(base, folder)
        times |= training.pop("spent", {"train_seconds": 0.0})

        rows = [row for _, row in numbered]
        sets = evaluate.question_sets(stage, table, parameters, data_root, rows)
        evaluations, scoring_times = self._evaluate(base, adapted, sets, parameters, job["base_hash"])
        times.update(scoring_times)
        report = self._write_results(job, stage, parameters, evaluations, training, times)
        from trainer.model import detach_adapter

        detach_adapter(adapted, base)
        return {
            "gate": report["gate"],
            "fingerprint": report["fingerprint"],
            "summary": {item["name"]: item["result"]["summary"] for item in report["evaluations"]},
            "times": times,
        }

    def resident_base(self, parameters: config.Parameters, corpus: Path) -> Base:
        """The base of these parameters, loaded once and kept for the next stage."""
        from trainer import model

        key = tuple(
            getattr(parameters, name)
            for name in ("model_name_or_path", "model_revision", "use_modelscope", "use_qlora", "compute_dtype")
        )
        if self.base is None or self.base_key != key:
            self.base = None
            path = parameters.model_name_or_path
            if path == embedded.NAME:
                path = str(embedded.build(self.layout.models, corpus, say=self._say))
            elif hub.is_remote(path):
                path = str(copies.fetch(parameters, self.layout, self._say, self._phase))
            self.base, self.base_key = model.load_base(path, parameters), key
        return self.base

    def _phase(self, name: str) -> None:
        self.report("phase", phase=name)

    def _say(self, text: str) -> None:
        print(text, flush=True)
        self.report("note", text=text)

    def _train(
        self, base: Base, stage: stages.Stage, parameters: config.Parameters,
        numbered: list[tuple[int, dict[str, Any]]], job: Job,
    ) -> tuple[PeftModel, dict[str, Any]]:  # fmt: skip
        from trainer.model import attach_adapter
        from trainer.train import train

        limit = min(parameters.max_length, getattr(base.model.config, "max_position_embeddings", parameters.max_length))
        examples, findings = encoding.encode(
            numbered, base.tokenizer, stage.data, enable_thinking=parameters.enable_thinking, max_length=limit
        )
        raise_errors(findings)
        self.report("phase", phase="training", rows=len(numbered))
        adapted = attach_adapter(base, parameters)
        folder = Path(job["folder"])
        training = train(adapted, base, examples, parameters, folder, self.report, store(job, parameters, base))
        started = time.monotonic()
        adapted.save_pretrained(str(folder), safe_serialization=True)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card; the eval report says more
        spent = {**training.pop("spent"), "save_seconds": round(time.monotonic() - started, 3)}
        training["rows"] = len(numbered)
        training["dropped"] = []  # rows that do not fit are refused above, none is dropped
        write_plain_json(folder / "training.json", training)
        return adapted, {**training, "spent": spent}

    def _reload(self, base: Base, folder: Path) -> tuple[PeftModel, dict[str, Any]]:
        """The adapter trained before, for a new score of unchanged weights."""
        from trainer.model import load_adapter

        training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        return load_adapter(base, folder), training

    def _evaluate(
        self, base: Base, adapted: PeftModel, sets: list[evaluate.QuestionSet], parameters: config.Parameters,
        base_hash: str,
    ) -> tuple[list[dict[str, Any]], dict[str, float]]:  # fmt: skip
        from trainer.generate import answer

        def asked(name: str) -> evaluate.Answer:
            def progress(done: int, rows: int) -> None:
                self.report("progress", questions=name, answered=done, rows=rows)

            def run(rows: Any) -> Any:
                found = answer(adapted, base.tokenizer, rows, parameters, progress)  # type: ignore[arg-type]
                return found.predictions, found.tokens

            return run

        self.report("phase", phase="evaluating", rows=sum(len(item.rows) for item in sets))
        evaluations: list[dict[str, Any]] = []
        times = {"generate_seconds": 0.0, "score_seconds": 0.0}
        for questions in sets:
            found, spent = evaluate.evaluate([questions], asked(questions.name))
            evaluations += found
            times = {name: round(times[name] + spent[name], 3) for name in times}
        started = time.monotonic()
        with adapted.disable_adapter():
            scores = evaluate.base_scores(sets, asked("base model"), self.layout.cache, base_hash, parameters)
        times["base_seconds"] = round(time.monotonic() - started, 3)
        for item, score in zip(evaluations, scores, strict=True):
            item["base"] = score
        return evaluations, times

    def _write_results(
        self, job: Job, stage: stages.Stage, parameters: config.Parameters, evaluations: list[dict[str, Any]],
        training: dict[str, Any], times: dict[str, float],
    ) -> dict[str, Any]:  # fmt: skip
        from trainer import report as reports

        folder = Path(job["folder"])
        adapter_hash = fingerprint.of_adapter(folder)
        if adapter_hash is None:
            raise TrainingFailed(f"the adapter of stage {stage.name} was not written; look at the log above")
        verdict = evaluate.gate(stage, parameters, evaluations, job["gate"])
        evaluate.write_predictions(folder / f"predictions_{stage.name}.jsonl", evaluations)
        for item in evaluations:
            del item["predictions"]
        report = {
            "schema": 1,
            "stage": stage.name,
            "adapter": stage.adapter,
            "created_at": state.now(),
            "plan_id": job["plan_id"],
            "attempt": job["attempt"],
            "gate": verdict,
            "fingerprint": {**job["fingerprint"], "adapter": adapter_hash},
            "evaluations": evaluations,
            "training": training,
            "parameters": job["parameters"],
            "environment": {**environment(job, parameters), **hub.described(parameters, self.layout)},
            "times": times,
        }
        if job["mode"] == "train":
            keys = ("stage", "plan_id", "attempt", "created_at", "fingerprint", "training", "parameters", "environment")
            write_plain_json(folder / "training_config.json", {"schema": 1, **{key: report[key] for key in keys}})
        reports.write_eval_report(report, folder)
        return report


def write_plain_json(path: Path, value: Any) -> None:
    """Indented JSON for people; these files become durable with the folder that holds them."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def store(job: Job, parameters: config.Parameters, base: Base) -> checkpoint.Store | None:
    """The stage's checkpoints, bound to all that shapes its training; None when the job names no folder for them."""
    if not job.get("checkpoints"):
        return None
    shaping = config.by_scope(parameters, "training")
    device, dtype = base.model.device.type, str(base.dtype).removeprefix("torch.")
    inputs = checkpoint.made_with(job["fingerprint"]["parts"], shaping, versions(), device, dtype)
    return checkpoint.Store(Path(job["checkpoints"]), inputs)


def versions() -> dict[str, str | None]:
    """The libraries that a result depends on, None for one that is not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def environment(job: Job, parameters: config.Parameters) -> dict[str, Any]:
    """What the result was made with: versions, device, base, code."""
    import torch

    return {
        "python": platform.python_version(),
        **versions(),
        "platform": platform.platform(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "cpu_count": os.cpu_count(),
        "base_model": parameters.model_name_or_path,
        "base_hash": job["base_hash"],
        "source_id": job["source_id"],
        "source_commit": (content.read_record(steps.code_root()) or {}).get("commit", ""),
        "enable_thinking": parameters.enable_thinking,
    }


def redirect_output(path: Path) -> None:
    """Send standard output and error, also those of native libraries, to the end of a log file."""
    sys.stdout.flush()
    sys.stderr.flush()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def main(project_root: Path, report_descriptor: int) -> int:
    """Entry of `python -m trainer worker`, started by the supervisor only."""
    process.die_with_parent()
    return Worker(state.Layout(project_root), report_descriptor).run()
