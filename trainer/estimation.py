"""What one stage will take on this host: memory and seconds, with where each figure comes from. No torch.

Seconds come from the device's figures (trainer.throughput), corrected by the last run like it on this host, if there
was one; where a device's figures are not known, from the tokens per second of that run; else there are none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import encoding, lastrun, throughput, workload
from trainer.basefacts import BaseFacts
from trainer.budget import DTYPE_BYTES
from trainer.config import Parameters
from trainer.device import Device
from trainer.errors import InputError
from trainer.estimate import Memory, weight_bytes
from trainer.shape import adapter_parameters
from trainer.stages import Stage, StageTable
from trainer.state import Layout
from trainer.way import Fit, Way
from trainer.workload import Workload

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Before the first step, where no run has measured it: imports on two slow cores, and reading the weights.
IMPORT_SECONDS = 20.0
READ_BYTES_PER_SECOND = 1e9


@dataclass(frozen=True)
class Host:
    """What the estimates of all stages share: the project root, the device, where the data lies."""

    layout: Layout
    device: Device
    data_root: Path

    @cached_property
    def speed(self) -> throughput.Speed | None:
        """The device's figures; those of a processor are measured, which takes some tenths of a second."""
        on_gpu = self.device.kind == "cuda"
        return throughput.of_card(self.device.name) if on_gpu else throughput.of_processor(self.device.cores)


@dataclass(frozen=True)
class Seconds:
    """Seconds of a stage by part, None where nothing tells them; `source` is where they come from, in words.

    `start` is spent once for a plan, and `base` only where the base's answers are not remembered from before.
    """

    train: float | None = None
    generate: float | None = None
    base: float | None = None
    rest: float = 0.0
    start: float | None = None
    source: str = ""

    @property
    def stage(self) -> float | None:
        """All but the start."""
        if self.train is None or self.generate is None or self.base is None:
            return None
        return self.train + self.generate + self.base + self.rest


@dataclass(frozen=True)
class StageEstimate:
    """One stage: what it has to do, how it would be run, and what that takes on one device."""

    stage: str
    work: Workload
    steps: int
    train_tokens: int
    generated_tokens: int
    way: Way
    fit: Fit
    seconds: Seconds
    figures: Seconds | None = None  # before they were corrected by the last run

    def as_dict(self) -> dict[str, Any]:
        """For JSON and the report; bytes, seconds and tokens, None for what is not known."""
        work, seconds = self.work, self.seconds
        return {
            "stage": self.stage, "rows": work.rows, "examples": work.examples, "tokens": work.tokens,
            "longest": work.longest, "questions": work.asked, "counted": work.counted, "steps": self.steps,
            "memory_bytes": self.fit.total, "training_memory": _parts(self.fit.training),
            "answering_memory": _parts(self.fit.answering),
            "train_tokens": self.train_tokens, "generated_tokens": self.generated_tokens,
            "train_seconds": _rounded(seconds.train), "generate_seconds": _rounded(seconds.generate),
            "base_seconds": _rounded(seconds.base), "start_seconds": _rounded(seconds.start),
            "seconds": _rounded(seconds.stage), "seconds_from": seconds.source,
            "train_tokens_per_second": _rate(self.train_tokens, seconds.train),
            "generated_tokens_per_second": _rate(self.generated_tokens, seconds.generate),
            "from_figures": {"train_seconds": self.figures.train, "generate_seconds": self.figures.generate}
            if self.figures else None,
            "choices": self.way.choices.table(), "unfit": self.fit.unfit,
        }  # fmt: skip


def _parts(memory: Memory | None) -> dict[str, int] | None:
    return None if memory is None else {**asdict(memory), "total": memory.total}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _rate(tokens: int, seconds: float | None) -> float | None:
    return round(tokens / seconds, 1) if seconds else None


def tokenizer_in(folder: Path | None) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a base that lies on this host, where transformers can load it."""
    if folder is None or not folder.is_dir():
        return None
    try:
        return encoding.load_tokenizer(str(folder), local_only=True)
    except (ImportError, InputError):  # a fault is named by `check`; an estimate can do without
        return None


def of_stage(
    host: Host, stage: Stage, table: StageTable, parameters: Parameters, facts: BaseFacts,
    tokenizer: PreTrainedTokenizerBase | None, processes: int = 0,
) -> StageEstimate:  # fmt: skip
    """What a stage will take; 0 `processes`: as the parameters or the device say.

    Errors: InputError for its files, HostUnfit or InputError for what is asked of the base and cannot be had.
    """
    work = workload.of_stage(stage, table, parameters, host.data_root, tokenizer)
    steps = workload.steps_of(parameters, work.examples)
    examples = parameters.per_device_train_batch_size * parameters.gradient_accumulation_steps
    epochs = steps * examples / work.examples if parameters.max_steps > 0 else parameters.num_train_epochs
    tokens = round(work.tokens * epochs)
    way = Way(parameters, host.device, facts.shape, work, steps, processes)
    expected = sum(way.answer(question)[0] * question.count for question in work.questions)
    figures = _from_figures(host, way, tokens)
    seconds = _from_last_run(host, stage.name, way, tokens, figures) or figures or Seconds()
    return StageEstimate(stage.name, work, steps, tokens, round(expected), way, way.fit(), seconds, figures)


def _from_last_run(host: Host, stage: str, way: Way, tokens: int, figures: Seconds | None) -> Seconds | None:
    """The figures corrected by what the last run needed of them, else as many tokens per second as it had."""
    last = lastrun.of(host.layout, way.parameters, host.device, stage)
    if last is None:
        return None
    source = f"the last run (stage {last.stage}, {last.created_at[:16].replace('T', ' ')})"
    rest, start = last.seconds(lastrun.REST), last.seconds(lastrun.START)
    if figures and figures.train and figures.generate and figures.base and last.train_factor and last.generate_factor:
        train, answer = last.train_factor, last.generate_factor
        return Seconds(figures.train * train, figures.generate * answer, figures.base * answer, rest, start, source)
    if last.train_rate is None or last.generate_rate is None:
        return None
    answers = [(way.answer(question), question.count) for question in way.work.questions]
    expected, allowed = (sum(found[which] * count for found, count in answers) for which in (0, 1))
    # Without an adapter an answer seldom stops before it has to.
    return Seconds(
        tokens / last.train_rate, expected / last.generate_rate, allowed / last.generate_rate, rest, start, source
    )


def _from_figures(host: Host, way: Way, tokens: int) -> Seconds | None:
    """From peak and bandwidth, which hold for a GPU's native types of 16 bits only, and for a base that is whole.

    How fast shares are gathered depends on what connects the GPUs.
    """
    shape, choose, on_gpu = way.shape, way.choices.value, host.device.kind == "cuda"
    native = choose("dtype") == "float16" or (choose("dtype") == "bfloat16" and host.device.bf16_native)
    fitting = shape is not None and (native or not on_gpu) and not choose("shard_base")
    speed = host.speed if fitting else None
    if speed is None or shape is None:
        return None
    share = way.processes if on_gpu else 1  # processes on one processor share its cores
    of_step = tokens / way.steps / share
    passes = way.steps * max(1, -(-round(of_step) // choose("tokens_per_pass")))
    seen = way.work.pairs / way.work.tokens  # by each token: no row looks at another
    mine = round(tokens / share)
    train = throughput.training_seconds(
        shape, speed, adapter=adapter_parameters(shape, way.parameters.lora_r, way.parameters.lora_target_modules),
        tokens=mine, trained=round(mine * way.work.trained_share), pairs=mine * seen, steps=way.steps,
        passes=passes,
        checkpointing=choose("gradient_checkpointing"), quantised=choose("quantise"),
    )  # fmt: skip
    weights = weight_bytes(shape, quantised=choose("quantise"), dtype_bytes=DTYPE_BYTES[choose("dtype")])
    return Seconds(
        train=train,
        generate=_answer_seconds(way, speed, 0, share),
        base=_answer_seconds(way, speed, 1, share),
        start=IMPORT_SECONDS + weights / READ_BYTES_PER_SECOND,
        source=speed.source,
    )


def _answer_seconds(way: Way, speed: throughput.Speed, which: int, share: int) -> float:
    """Seconds of all batches, each as long as its longest answer; `which`: 0 as expected, 1 as allowed."""
    assert way.shape is not None
    choose, batch = way.choices.value, way.choices.value("eval_batch")
    lengths: list[int] = []
    for question in way.work.questions:
        lengths += [way.answer(question)[which]] * max(1, round(question.count / share))
    lengths.sort(reverse=True)
    batches = [(len(lengths[i : i + batch]), lengths[i]) for i in range(0, len(lengths), batch)]
    return throughput.answering_seconds(
        way.shape, speed, prompt=round(sum(q.prompt * q.count for q in way.work.questions) / share), answers=batches,
        quantised=choose("quantise") and not choose("merge"), dtype_bytes=DTYPE_BYTES[choose("dtype")],
    )  # fmt: skip
