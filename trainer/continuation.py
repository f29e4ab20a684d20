"""Training that begins with the weights of an adapter instead of fresh ones.

That is another thing than to resume: a resumed training goes on at its step with optimiser, random numbers and
order of the rows; this one starts at step 0 with a new schedule, on whatever data it is given.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from trainer.config import Parameters
from trainer.errors import InputError

SETTINGS = {"r": "lora_r", "lora_alpha": "lora_alpha"}  # PEFT's name and ours


def begin_with(adapted: PeftModel, parameters: Parameters, base_hash: str) -> None:
    """Put the weights of the adapter `initial_adapter` into a fresh one; InputError unless they fit one by one."""
    folder = Path(parameters.initial_adapter).expanduser()
    told = _read(folder / "adapter_config.json")
    for theirs, ours in SETTINGS.items():
        if told.get(theirs) != getattr(parameters, ours):
            raise InputError(
                f"initial_adapter {folder.name} has {ours} {told.get(theirs)}, the stage {getattr(parameters, ours)}; "
                f"set {ours} to {told.get(theirs)}"
            )
    if (folder / "training_config.json").is_file():
        recorded = _read(folder / "training_config.json").get("fingerprint", {}).get("parts", {}).get("base")
        if recorded and recorded != base_hash:
            raise InputError(f"initial_adapter {folder.name} was trained on another base model; name one of this base")
    saved, wanted = load_file(folder / "adapter_model.safetensors"), get_peft_model_state_dict(adapted)
    odd = sorted(saved.keys() ^ wanted.keys()) or [n for n, w in wanted.items() if saved[n].shape != w.shape]
    if odd:
        raise InputError(
            f"initial_adapter {folder.name} does not fit: {len(odd)} weights differ, the first is {odd[0]}; give the "
            "lora_target_modules that it was trained with"
        )
    set_peft_model_state_dict(adapted, saved)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as problem:
        raise InputError(f"{path} cannot be read ({type(problem).__name__}); name an adapter's folder") from None
