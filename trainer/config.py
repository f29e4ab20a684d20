"""The parameters: one dataclass with name, type, default, unit, limits and help for each of them.

Values are merged in this order, the later winning: dataclass default < stage difference (stages.yml) <
profile (stages.yml) < environment (upper-case field name) < variable or command line.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from trainer.arguments import suggestion as suggestion
from trainer.errors import InputError

Scope = Literal["training", "evaluation", "runtime"]
Override = dict[str, Any]  # {"value": typed value, "source": where it came from}


def _parameter(
    default: Any,
    help: str,
    *,
    unit: str = "",
    scope: Scope = "training",
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field; `above` is an exclusive lower limit, `scope` says which result it shapes."""
    return field(
        default=default,
        metadata={
            "help": help,
            "unit": unit,
            "scope": scope,
            "minimum": minimum,
            "maximum": maximum,
            "above": above,
            "choices": choices,
        },
    )


@dataclass(frozen=True)
class Parameters:
    """Every parameter of a stage. Defaults are those of a GPU host (the older scripts' values)."""

    model_name_or_path: str = _parameter(
        "Qwen/Qwen3-8B", "base model: hub id, local folder, or `embedded` for the tiny built one"
    )
    model_revision: str = _parameter("main", "branch, tag or commit of the base model on the hub")
    use_modelscope: bool = _parameter(False, "try ModelScope before Hugging Face")
    model_sources: str = _parameter(
        "auto",
        "where a base model that is no folder comes from: auto (both), or hub and modelscope in the order to try",
        scope="runtime",
    )
    hf_endpoint: str = _parameter(
        "auto", "Hugging Face or a mirror of it, https://…; auto: the host's HF_ENDPOINT, else the hub", scope="runtime"
    )
    network_environment_file: str = _parameter(
        "none", "shell file of the host with the proxy of its downloads, such as /etc/network_turbo", scope="runtime"
    )
    enable_thinking: bool = _parameter(False, "Qwen3 think block, the same in training, evaluation and export")
    use_qlora: bool | str = _parameter(
        True, "4-bit nf4 base with double quantisation (QLoRA); auto: only where memory does not hold the whole base"
    )
    compute_dtype: str = _parameter(
        "auto",
        "floating point type of the computation; auto: bfloat16 where it is native",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    lora_r: int = _parameter(16, "LoRA rank", minimum=1, maximum=1024)
    lora_alpha: int = _parameter(32, "LoRA scaling numerator (scale = alpha / rank)", minimum=1)
    lora_dropout: float = _parameter(0.05, "dropout before the adapter", minimum=0.0, maximum=0.9)
    lora_target_modules: str = _parameter(
        "all-linear", "modules that get an adapter: all-linear, or names separated by commas"
    )
    initial_adapter: str = _parameter(
        "none", "adapter of this host (an absolute path) whose weights the training begins with; none: fresh ones"
    )
    num_train_epochs: float = _parameter(2.0, "passes over the data", unit="epochs", above=0.0)
    max_steps: int = _parameter(
        -1, "end after this many optimiser steps; -1: as the epochs say", unit="steps", minimum=-1
    )
    per_device_train_batch_size: int = _parameter(
        1, "examples at a time; times gradient_accumulation_steps: the examples of an optimiser step, on any host",
        minimum=1,
    )  # fmt: skip
    gradient_accumulation_steps: int = _parameter(
        8, "how many times so many examples make an optimiser step", minimum=1
    )
    learning_rate: float = _parameter(1e-4, "peak learning rate", above=0.0, maximum=1.0)
    lr_scheduler_type: str = _parameter(
        "cosine",
        "shape of the learning rate over the steps",
        choices=("cosine", "linear", "constant", "constant_with_warmup"),
    )
    warmup_steps: float = _parameter(0.03, "warm-up: steps, or a share of all steps when below 1", minimum=0.0)
    weight_decay: float = _parameter(0.0, "AdamW weight decay", minimum=0.0, maximum=1.0)
    max_grad_norm: float = _parameter(1.0, "gradient clipping; 0: none", minimum=0.0)
    max_length: int = _parameter(2048, "longest training example; longer rows are refused", unit="tokens", minimum=16)
    gradient_checkpointing: bool | str = _parameter(
        "auto", "recompute activations to save memory, 20 to 30 % slower; auto: only where memory asks for it"
    )
    seed: int = _parameter(42, "seed of every random choice", minimum=0, maximum=2**32 - 1)
    gate_questions: str = _parameter(
        "held_out",
        "what the gate is judged on: the held-out benchmarks, or the stage's trained questions",
        scope="evaluation",
        choices=("held_out", "trained"),
    )
    per_device_eval_batch_size: int = _parameter(
        0, "questions answered at a time; 0: as many as memory holds", scope="evaluation", minimum=0
    )
    max_new_tokens: int = _parameter(1024, "longest answer", unit="tokens", scope="evaluation", minimum=1)
    max_new_tokens_ratio: float = _parameter(
        2.0, "longest answer relative to the row's reference answer, at least 64 tokens; 0: no such limit",
        scope="evaluation", minimum=0.0,
    )  # fmt: skip
    merge_adapter: str = _parameter(
        "auto", "answer with the adapter merged into the weights; auto: where the answers stay the same",
        scope="evaluation", choices=("auto", "off"),
    )  # fmt: skip
    attention: str = _parameter(
        "auto", "attention implementation; auto: the fastest that the host has", scope="runtime",
        choices=("auto", "eager", "sdpa", "flash_attention_2"),
    )  # fmt: skip
    packing: str = _parameter(
        "auto", "layout of a step's examples: padding_free (one after another, never seeing each other) or padded",
        scope="runtime", choices=("auto", "padding_free", "padded"),
    )  # fmt: skip
    share_prefixes: bool | str = _parameter(
        "auto", "compute the equal beginnings of a step's rows once; auto: when lora_dropout is 0", scope="runtime",
    )  # fmt: skip
    tokens_per_pass: int = _parameter(
        0, "tokens that go through the model at once in training; 0: as memory allows", unit="tokens", scope="runtime",
        minimum=0,
    )  # fmt: skip
    fused_kernels: str = _parameter(
        "auto", "fused kernels: our own of the adapter, and Liger's where it is installed on a GPU; off: neither",
        scope="runtime", choices=("auto", "off"),
    )  # fmt: skip
    compile_above_steps: int = _parameter(
        0, "compile the model for a training of at least so many steps; 0: never", unit="steps", scope="runtime",
        minimum=0,
    )  # fmt: skip
    num_processes: int = _parameter(
        0, "processes that share a stage; 0: one for each GPU, one without a GPU", scope="runtime", minimum=0
    )
    shard_base: bool | str = _parameter(
        "auto", "processes hold shares of the base and gather its layers in turn; auto: where one GPU does not hold it",
        scope="runtime",
    )  # fmt: skip
    logging_steps: int = _parameter(1, "report the loss every so many steps", unit="steps", scope="runtime", minimum=1)
    save_steps: int = _parameter(
        500, "write a checkpoint every so many optimiser steps; 0: not by steps", unit="steps", scope="runtime",
        minimum=0,
    )  # fmt: skip
    save_seconds: int = _parameter(
        300, "write a checkpoint also when so much time has passed since the last; 0: not by time", unit="seconds",
        scope="runtime", minimum=0,
    )  # fmt: skip
    stage_timeout_seconds: int = _parameter(
        21600, "longest time of one stage", unit="seconds", scope="runtime", minimum=1
    )
    stall_timeout_seconds: int = _parameter(
        1800, "a worker without a report and without work for the processor or GPU is reported as stalled after this",
        unit="seconds", scope="runtime", minimum=1,
    )  # fmt: skip
    stage_attempts: int = _parameter(
        1, "how often a stage is started when its worker is lost", scope="runtime", minimum=1
    )


PLACE = ("model_name_or_path", "model_revision", "use_modelscope")  # where a base comes from
SWITCH = "bool | str"  # the type of a parameter that is true, false or "auto"
FIELDS: dict[str, dataclasses.Field[Any]] = {item.name: item for item in fields(Parameters)}
ENVIRONMENT_NAMES: dict[str, str] = {name.upper(): name for name in FIELDS}
_TRUE = {"true", "yes", "on", "1", "y"}
_ADDRESS = re.compile(r"https?://[^\s/@?#]+(/[^\s@?#]*)?")
_FALSE = {"false", "no", "off", "0", "n"}
# The name in circulation is not a published Qwen id; a copy of unknown content exists elsewhere.
_WRONG_MODELS = {"qwen/qwen3-8b-instruct": "Qwen/Qwen3-8B"}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def shown_limit(value: float) -> str:
    """A limit as people write it: `0.9`, `4294967295`."""
    return f"{value:.15g}"


def convert(name: str, value: Any) -> Any:
    """`value` (typed or a string) in the field's type; ValueError with what is wrong and what to do."""
    item = FIELDS[name]
    kind, meta = item.type, item.metadata
    if kind == "bool":
        result: Any = _to_bool(value)
    elif kind == SWITCH:
        result = "auto" if str(value).strip().lower() == "auto" else _to_bool(value, "true, false or auto")
    elif kind in ("int", "float"):
        result = _to_number(value, whole=kind == "int")
    else:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"is {_shown(value)}; give a non-empty text")
        result = value.strip()
    low, high, above = meta["minimum"], meta["maximum"], meta["above"]
    if low is not None and result < low:
        raise ValueError(f"is {_shown(value)}; it must be at least {shown_limit(low)}")
    if high is not None and result > high:
        raise ValueError(f"is {_shown(value)}; it must be at most {shown_limit(high)}")
    if above is not None and result <= above:
        raise ValueError(f"is {_shown(value)}; it must be more than {shown_limit(above)}")
    if meta["choices"] and result not in meta["choices"]:
        raise ValueError(f"is {_shown(value)}; choose one of {', '.join(meta['choices'])}")
    if isinstance(result, str):
        _check_source(name, result)
    if name == "max_steps" and result == 0:
        raise ValueError("is 0, which trains nothing; use -1 for no limit or a positive number")
    return result


def _check_source(name: str, value: str) -> None:
    """ValueError for a base model or a source of it that is known to be wrong."""
    if name == "model_name_or_path" and value.lower() in _WRONG_MODELS:
        raise ValueError(f"is {_shown(value)}, which Qwen never published; use {_WRONG_MODELS[value.lower()]}")
    if value == "auto":
        return
    if name == "model_sources" and not {part.strip() for part in value.split(",")} <= {"hub", "modelscope"}:
        raise ValueError(f"is {_shown(value)}; give auto, or hub and modelscope separated by a comma")
    if name == "hf_endpoint" and not _ADDRESS.fullmatch(value):
        found = "an address with a user name or password" if "@" in value else _shown(value)
        raise ValueError(f"is {found}; give auto, or an address such as https://hub.example.org")


def _to_bool(value: Any, words: str = "true or false") -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in _TRUE | _FALSE:
        return word in _TRUE
    raise ValueError(f"is {_shown(value)}; give {words}")


def _to_number(value: Any, *, whole: bool) -> int | float:
    words = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"is {_shown(value)}; give {words}")
    try:
        if whole and isinstance(value, str) and value.strip().lstrip("+-").isdecimal():
            return int(value)
        number = float(value)
    except (ValueError, OverflowError):  # a whole number beyond every float
        raise ValueError(f"is {_shown(value)}; give {words}") from None
    if not math.isfinite(number) or (whole and number != int(number)):
        raise ValueError(f"is {_shown(value)}; give {words}")
    return int(number) if whole else number


def checked(values: Mapping[str, Any], source: str) -> tuple[dict[str, Override], list[str]]:
    """`values` converted, each with `source` ({name} is replaced), and the findings on the wrong ones."""
    good: dict[str, Override] = {}
    findings: list[str] = []
    for name, value in values.items():
        here = source.replace("{name}", str(name))  # no format(): sources and names come from outside
        if name not in FIELDS:
            findings.append(f"{here}: there is no parameter {name!r}{suggestion(str(name), FIELDS)}")
            continue
        try:
            good[name] = {"value": convert(name, value), "source": here}
        except ValueError as problem:
            named = here if name in here.lower() else f"{here}: {name}"  # a stage or a profile sets many
            findings.append(f"{named} {problem}")
    return good, findings


def environment_overrides(environment: Mapping[str, str]) -> tuple[dict[str, Override], list[str]]:
    """The parameters that the environment sets by upper-case field name; an empty value sets nothing."""
    good: dict[str, Override] = {}
    findings: list[str] = []
    for variable, name in ENVIRONMENT_NAMES.items():
        if environment.get(variable, "").strip():
            found, wrong = checked({name: environment[variable]}, f"environment {variable}")
            good.update(found)
            findings += wrong
    return good, findings


def raise_findings(findings: list[str]) -> None:
    """InputError with all findings: the last one is the sentence, the others stand above it."""
    if findings:
        more = f" (and {len(findings) - 1} more above)" if len(findings) > 1 else ""
        raise InputError(findings[-1] + more, findings[:-1])


def overrides_from(variables: Mapping[str, Any], environment: Mapping[str, str], source: str) -> dict[str, Override]:
    """Environment below variables, each checked; InputError names every wrong one at once."""
    merged, findings = environment_overrides(environment)
    found, wrong = checked(variables, source)
    merged.update(found)
    raise_findings(findings + wrong)
    return merged


def resolve(
    stage_name: str,
    stage_values: Mapping[str, Any],
    profile_name: str,
    profile_values: Mapping[str, Any],
    overrides: Mapping[str, Override],
) -> tuple[Parameters, dict[str, str]]:
    """The parameters of one stage and the source of each; overrides are {field: {value, source}}."""
    values: dict[str, Any] = {}
    sources = dict.fromkeys(FIELDS, "default")
    findings: list[str] = []
    for layer, source in (
        (stage_values, f"stage {stage_name}"),
        (profile_values, f"profile {profile_name}"),
    ):
        good, wrong = checked(layer, source)
        findings += wrong
        for name, item in good.items():
            values[name], sources[name] = item["value"], source
    for name, item in overrides.items():
        good, wrong = checked({name: item["value"]}, str(item["source"]))
        findings += wrong
        if good:
            values[name], sources[name] = good[name]["value"], str(item["source"])
    raise_findings(findings)
    found = Parameters(**values)
    raise_findings(conflicts(found))
    return found, sources


def conflicts(parameters: Parameters) -> list[str]:
    """What cannot be had together; a single process has nothing to share, whatever is asked."""
    shares_4_bits = parameters.shard_base is True and parameters.use_qlora is True and parameters.num_processes != 1
    sentence = (
        "shard_base is true and use_qlora is true, but the 4-bit weights of bitsandbytes cannot be shared; set "
        "use_qlora to false, or shard_base to auto"
    )
    return [sentence] if shares_4_bits else []


def by_scope(parameters: Parameters, scope: Scope) -> dict[str, Any]:
    """The values that shape one kind of result, in the order of the fields."""
    return {name: getattr(parameters, name) for name, item in FIELDS.items() if item.metadata["scope"] == scope}


def table(parameters: Parameters, sources: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """{name: {value, source}} as every report shows it."""
    return {name: {"value": getattr(parameters, name), "source": sources[name]} for name in FIELDS}
