"""Loading the base model and its tokenizer, plain or quantised, and putting adapters on and off it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from trainer import device as devices
from trainer import shape as shapes
from trainer import sharding
from trainer.choices import Choices, for_base
from trainer.config import Parameters, suggestion
from trainer.encoding import first_line, load_tokenizer
from trainer.errors import HostUnfit, InputError, TrainingFailed

log = logging.getLogger(__name__)


# What of the quantisation shapes the bits, beside the type and the device of the computation.
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Base:
    """A resident base model: weights without an adapter, its tokenizer and how it computes.

    `device`, `shape` and `choices` (those of `choices.for_base`) are what further choices are made from.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype
    quantised: bool
    source: str
    device: devices.Device = field(default_factory=devices.found)
    shape: shapes.Shape | None = None
    choices: Choices = field(default_factory=Choices)


def load_base(
    path: str, parameters: Parameters, *, device: devices.Device | None = None, choices: Choices | None = None,
    copy: Path | None = None,
) -> Base:  # fmt: skip
    """The base model in the folder `path` on the device of this host, ready for an adapter.

    `device` and `choices` (of `choices.for_base`) are found and made where they are not given. `copy` is a 4-bit copy
    of this base (trainer/prepared.py) to read the weights from. A base that is to be in shares is whole in the memory
    of the host for as long as this takes.
    """
    device, shape = device or devices.found(), shapes.of_folder(Path(path))
    choices = Choices(for_base(parameters, device, shape) if choices is None else choices)
    dtype, quantise = DTYPES[choices.value("dtype")], bool(choices.value("quantise"))
    tokenizer = load_tokenizer(path, local_only=True)
    options: dict[str, Any] = {
        "dtype": dtype, "trust_remote_code": False, "use_safetensors": True, "local_files_only": True,
    }  # fmt: skip
    if parameters.attention != "auto" or choices.value("attention") != "sdpa":  # models without sdpa are eager
        options["attn_implementation"] = choices.value("attention")
    if quantise:
        settings = quantisation(dtype)
        options |= {} if copy else {"quantization_config": settings}
    shares = bool(choices.value("shard_base"))
    if torch.cuda.is_available() and not shares:
        options["device_map"] = {"": torch.cuda.current_device()}  # the process's own
    try:
        model = AutoModelForCausalLM.from_pretrained(str(copy or path), **options)
    except (OSError, ValueError) as problem:
        raise InputError(f"the base model {path!r} could not be loaded: {first_line(problem)}") from problem
    _settle(model, path)
    taken = model.config._attn_implementation
    if taken != choices.value("attention"):
        choices.add("attention", taken, f"{type(model).__name__} has no other")
    if choices.value("fused_kernels") == "liger":
        fuse(model)
    if shares:
        sharding.shard(model)
    return Base(model, tokenizer, dtype, quantise, path, device, shape, choices)


def _settle(model: PreTrainedModel, path: str) -> None:
    """Take away from a loaded model what would shape results unseen, wherever its weights were read from."""
    model.config.use_cache = False
    model.generation_config = GenerationConfig()  # answers are greedy: no penalty or sampling of the model's makers
    model.name_or_path = model.config._name_or_path = path  # PEFT writes it into the adapter's configuration
    for module in model.modules():
        # On some CPUs bitsandbytes repacks a 4-bit weight for good when it answers first: through that weight no
        # gradient flows, and the next stage would train on another base than the one before.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def fuse(model: PreTrainedModel) -> None:
    """Put Liger's kernels in the place of the norms, the rotary embedding and the SwiGLU.

    The loss stays ours: it is taken over the trained tokens of a whole step.
    """
    from transformers.integrations.liger import apply_liger_kernel

    kernels = {"rope": True, "rms_norm": True, "swiglu": True}
    apply_liger_kernel(model, {**kernels, "cross_entropy": False, "fused_linear_cross_entropy": False})


def quantisation(dtype: torch.dtype) -> Any:
    """nf4 with double quantisation (Dettmers et al. 2023, QLoRA); HostUnfit where bitsandbytes does not work."""
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes.functional as kernels

        packed, state = kernels.quantize_4bit(
            torch.ones(64, 64, device="cuda" if torch.cuda.is_available() else "cpu"), quant_type="nf4"
        )
        kernels.dequantize_4bit(packed, state)
    except Exception as problem:  # missing library, no kernel for this device, broken CUDA set-up
        raise HostUnfit(
            f"use_qlora needs a bitsandbytes that works, here it fails ({first_line(problem)}); "
            "repair it or set use_qlora to false"
        ) from problem
    return BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=dtype)


def attach_adapter(base: Base, parameters: Parameters) -> PeftModel:
    """A new LoRA adapter on the base, its weights drawn from the seed."""
    torch.manual_seed(parameters.seed)
    wanted = parameters.lora_target_modules
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if wanted != "all-linear":
        _check_targets(base, names)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=parameters.lora_r,
        lora_alpha=parameters.lora_alpha,
        lora_dropout=parameters.lora_dropout,
        target_modules=wanted if wanted == "all-linear" else names,
        bias="none",
    )
    try:
        adapted = get_peft_model(base.model, lora)
    except ValueError as problem:
        raise InputError(f"lora_target_modules is {wanted!r}: {first_line(problem)}") from problem
    if not isinstance(adapted, PeftModel):
        raise TrainingFailed(f"PEFT returned a {type(adapted).__name__} instead of a PeftModel")
    return adapted


def _check_targets(base: Base, names: list[str]) -> None:
    """InputError for a name that is no module of the base: PEFT itself is content when one of them is."""
    known = {part for name, _ in base.model.named_modules() for part in (name, name.rpartition(".")[2])}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        found = repr(unknown[0]) if unknown else "no name"
        hint = suggestion(unknown[0], known) if unknown else ""
        raise InputError(f"lora_target_modules names {found}, which is no module of the base model{hint}; "
                         "give all-linear, or names such as q_proj,v_proj")  # fmt: skip


def load_adapter(base: Base, folder: Path) -> PeftModel:
    """A saved adapter on the base; TrainingFailed when its keys are not exactly the model's.

    PEFT itself only warns about missing keys and would answer with half an adapter.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    if not (folder / "adapter_model.safetensors").is_file():
        raise TrainingFailed(f"the adapter in {folder.name} has no adapter_model.safetensors; train the stage again")
    adapted = PeftModel.from_pretrained(base.model, str(folder), is_trainable=False)
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as stored:
        saved = set(stored.keys())
    wanted = set(get_peft_model_state_dict(adapted))
    if saved != wanted:
        odd = sorted(saved ^ wanted)
        raise TrainingFailed(
            f"the adapter in {folder.name} does not fit the base: {len(odd)} keys differ, the first is {odd[0]}"
        )
    return adapted


def detach_adapter(adapted: PeftModel, base: Base) -> None:
    """Take the adapter off: the base is as it was and can carry the next one."""
    base.model = adapted.unload()  # type: ignore[no-untyped-call]
    if hasattr(base.model, "peft_config"):
        del base.model.peft_config
    base.model.config.use_cache = False
