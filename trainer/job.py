"""The path of one stage through the worker: base, examples, training, answers, result."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import account, ahead, checkpoint, config, evaluate, examples, libraries, peaks, results, stages, state
from trainer.choices import Choice, Choices, for_answers
from trainer.crew import ALONE, Crew
from trainer.errors import InputError
from trainer.resident import Resident

if TYPE_CHECKING:
    from peft import PeftModel

    from trainer.model import Base

Job = dict[str, Any]
BASE = "base model"  # the questions asked without the adapter


class Times:
    """Seconds by part; what is measured within another part is not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.inner = [0.0]

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Count what happens within as `<part>_seconds`."""
        began = time.monotonic()
        self.inner.append(0.0)
        try:
            yield
        finally:
            spent = time.monotonic() - began
            self.add(part, spent - self.inner.pop())
            self.inner[-1] += spent

    def add(self, part: str, seconds: float) -> None:
        name = f"{part}_seconds"
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 3)

    def move(self, source: str, parts: dict[str, float]) -> None:
        """Seconds already counted in `source` that belong to others, by name with `_seconds`."""
        for name, seconds in parts.items():
            self.add(name.removesuffix("_seconds"), seconds)
            self.add(source, -seconds)


class StageJob:
    """One job of the worker: trains (or only scores) a stage into the job's fresh folder.

    Of several processes each trains and answers its share; the first one alone scores, reports and writes.
    """

    def __init__(
        self, job: Job, layout: state.Layout, resident: Resident, report: Callable[..., None], crew: Crew = ALONE
    ) -> None:
        self.job = job
        self.layout = layout
        self.resident = resident
        self.report = report
        self.crew = crew
        self.table = stages.load()
        self.stage = self.table.stage(job["stage"])
        self.parameters = config.Parameters(**{name: item["value"] for name, item in job["parameters"].items()})
        self.folder = Path(job["folder"])
        self.times = Times()
        self.choices = Choices()
        self.estimate: dict[str, Any] | None = None  # made before a training begins
        self.measured: dict[str, Any] = {}
        self.out_of_memory: list[dict[str, Any]] = []
        self.ahead: list[dict[str, Any]] = []  # questions of later stages that the base may answer now

    def carry_out(self) -> dict[str, Any]:
        """Everything from the base to the files of the result; returns what the stage's state records."""
        job, stage, trained = self.job, self.stage, self.job["mode"] == "train"
        began = time.monotonic()
        peaks.reset()
        self.report("phase", phase="loading")
        if "processes" in job:
            self.take(Choices(processes=Choice("processes", **job["processes"])))
        with self.times.of("import"):
            libraries.load()
        with self.times.of("load"):
            base = self.resident.get(self.parameters, Path(job["corpus"]))
        self.times.move("load", self.resident.spent)
        self.take(base.choices)
        with self.times.of("data"):
            data_root = Path(job["data_root"])
            expected = job["fingerprint"]["parts"]["data"]
            # In turn: one process surveys a big file, the others take what it found.
            source = self.crew.in_turn(lambda: examples.read(data_root, self.table, stage, expected, self.layout.cache))
            asked = source.sample(evaluate.MOST_TRAINED)
            sets = evaluate.question_sets(
                stage, self.table, self.parameters, data_root, asked, source.rows, source.leaks
            )
            self.ahead = ahead.rows(job.get("coming", ()), self.parameters, self.table, data_root)
        adapted, training = self._train(base, source) if trained else self._reload(base)
        evaluations = self._evaluate(base, adapted, sets)
        from trainer.model import detach_adapter

        detach_adapter(adapted, base)
        if not self.crew.is_first:
            return {}
        with self.times.of("check"):
            adapter = results.adapter_hash(self.folder, stage.name)
        figures = {
            "times": self.times.seconds,
            "wall_seconds": round(time.monotonic() - began, 3),
            "choices": self.choices.table(),
            "estimate": self.estimate,
            "measured": account.measured(training, evaluations, self.times.seconds, self.measured),
            "out_of_memory": self.out_of_memory,
        }
        report = results.eval_report(job, stage, self.parameters, self.layout, adapter, evaluations, training, figures)
        results.write(report, self.folder, trained)
        return {
            "gate": report["gate"],
            "fingerprint": report["fingerprint"],
            "summary": {item["name"]: item["result"]["summary"] for item in report["evaluations"]},
            "times": self.times.seconds,
        }

    def take(self, found: Choices) -> None:
        """Choices made for this stage: into its log, once, and into its report."""
        new = Choices({name: choice for name, choice in found.items() if self.choices.get(name) != choice})
        for line in new.lines():
            print(line, flush=True)
        self.choices.update(new)

    def _train(self, base: Base, source: examples.Source) -> tuple[PeftModel, dict[str, Any]]:
        from trainer.continuation import begin_with
        from trainer.model import attach_adapter
        from trainer.train import choose, train

        if self.crew.is_first:
            with self.times.of("estimate"):
                where = self.layout, self.stage, self.table, self.parameters, Path(self.job["data_root"])
                self.estimate = account.estimated(*where, base, self.crew.size)
        with self.times.of("data"):
            context = getattr(base.model.config, "max_position_embeddings", self.parameters.max_length)
            # In turn, beside the lock of the cache: the others wait where they hear of it when the first one fails.
            encoded = self.crew.in_turn(
                lambda: examples.of_source(source, base.tokenizer, self.parameters, context, self.layout.cache)
            )
        self.report("phase", phase="training", rows=source.rows)
        with self.times.of("setup"):
            adapted = attach_adapter(base, self.parameters)
            if self.parameters.initial_adapter != "none":
                begin_with(adapted, self.parameters, self.job["base_hash"])
            self.crew.spread([weight for weight in adapted.parameters() if weight.requires_grad])
            kept = store(self.job, self.parameters, base, self.crew.size)
            chosen = choose(self.parameters, base, encoded, self.crew)
            self.take(chosen)
            training = train(adapted, base, encoded, self.parameters, self.folder, self.report, kept, chosen, self.crew)
        self.times.move("setup", training.pop("spent"))
        training["rows"] = source.rows
        training["dropped"] = []  # rows that do not fit are refused above, none is dropped
        if self.crew.is_first:
            with self.times.of("save"):
                adapted.save_pretrained(str(self.folder), safe_serialization=True)
                (self.folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card; the report says more
                results.write_plain_json(self.folder / "training.json", training)
        return adapted, training

    def _reload(self, base: Base) -> tuple[PeftModel, dict[str, Any]]:
        """The adapter trained before, for a new score of unchanged weights."""
        from trainer.model import load_adapter

        with self.times.of("load"):
            training = json.loads((self.folder / "training.json").read_text(encoding="utf-8"))
            return load_adapter(base, self.folder), training

    def _evaluate(self, base: Base, adapted: PeftModel, sets: list[evaluate.QuestionSet]) -> list[dict[str, Any]]:
        """The evaluations of the first process; the others answer their share of what it asks, and return nothing."""
        from trainer import merging
        from trainer.generate import answer

        model: Any = adapted  # PEFT's wrapper answers like the model in it
        with self.times.of("generate"):
            found = self.crew.gather(self._plan_answers(base, adapted, sets))
        self.take(min(found, key=lambda choices: bool(choices.value("merge"))))  # as the one that cannot
        batch = min(int(choices.value("eval_batch")) for choices in found)
        sharers = self.crew if base.choices.value("shard_base") else ALONE
        as_trained = merging.merged if self.choices.value("merge") else contextlib.nullcontext

        def answers(rows: list[Any], name: str, total: int) -> list[Any]:
            def progress(done: int, _: int) -> None:
                self.report("progress", questions=name, answered=min(done * self.crew.size, total), rows=total)

            with model.disable_adapter() if name == BASE else as_trained(model):
                found = answer(
                    model, base.tokenizer, rows, self.parameters, progress, batch=batch, report=self.report,
                    crew=sharers,
                )  # fmt: skip
            self.out_of_memory += found.out_of_memory
            return found.predictions

        evaluations: list[dict[str, Any]] = []
        if self.crew.is_first:
            evaluations = self._ask(sets, answers, base)
        else:
            self.crew.serve(answers)
        self.out_of_memory = [entry for entries in self.crew.gather(self.out_of_memory) for entry in entries]
        return evaluations

    def _plan_answers(self, base: Base, adapted: PeftModel, sets: list[evaluate.QuestionSet]) -> Choices:
        """merge and eval_batch for this process's share of the questions."""
        from trainer import merging
        from trainer.generate import ask

        model: Any = adapted
        merge = merging.choose(adapted, base, self.parameters)
        parameters = self.parameters if merge.value else replace(self.parameters, merge_adapter="off")
        asked = [ask(model, base.tokenizer, row, self.parameters) for item in sets for row in item.rows]
        for row in list(self.ahead):
            try:
                asked.append(ask(model, base.tokenizer, row, self.parameters))
            except InputError:  # no room for an answer: said when its stage comes
                self.ahead.remove(row)
        longest = max((len(item.prompt) + item.cap for item in asked), default=1)
        rows = -(-len(asked) // self.crew.size)
        found = for_answers(parameters, base.device, base.shape, base.choices, rows, longest, self.crew.size)
        if found.value("merge") == merge.value:  # else memory has the last word
            found["merge"] = merge
        return found

    def _ask(
        self, sets: list[evaluate.QuestionSet], answers: Callable[..., list[Any]], base: Base
    ) -> list[dict[str, Any]]:
        """Everything asked and scored, with and without the adapter; the others are let go afterwards."""

        def asked(name: str) -> evaluate.Answer:
            return lambda rows: self.crew.ask(answers, rows, name, len(rows))

        self.report("phase", phase="evaluating", rows=sum(len(item.rows) for item in sets))
        evaluations, spent = evaluate.evaluate(sets, asked(" and ".join(item.name for item in sets)))
        for part in ("generate", "score"):
            self.times.add(part, spent[f"{part}_seconds"])
        self.measured["generated_tokens_per_second"] = spent["generated_tokens_per_second"]
        with self.times.of("base"):
            computed = (base.quantised, str(base.dtype))
            cache, base_hash = self.layout.cache, self.job["base_hash"]
            places = int(self.choices.value("eval_batch")) * self.crew.size
            scores = evaluate.base_scores(
                sets, asked(BASE), cache, base_hash, self.parameters, computed, self.ahead, places
            )
        self.crew.let_go()
        for item, score in zip(evaluations, scores, strict=True):
            item["base"] = score
        return evaluations


def store(job: Job, parameters: config.Parameters, base: Base, processes: int = 1) -> checkpoint.Store | None:
    """The stage's checkpoints, bound to all that shapes its training; None when the job names no folder for them."""
    if not job.get("checkpoints"):
        return None
    shaping = {**config.by_scope(parameters, "training"), "use_qlora": base.quantised}  # auto can be either
    device, dtype = base.model.device.type, str(base.dtype).removeprefix("torch.")
    place = device, dtype, processes, bool(base.choices.value("shard_base"))
    inputs = checkpoint.made_with(job["fingerprint"]["parts"], shaping, results.versions(), *place)
    return checkpoint.Store(Path(job["checkpoints"]), inputs)
