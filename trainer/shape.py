"""The sizes of a decoder from its config.json, as far as memory and time depend on them. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ALL_LINEAR = "all-linear"
# Decoders of seven linear modules in a layer, named alike. A mixture of experts or fused projections are others.
KNOWN_TYPES = ("qwen3", "qwen2", "llama", "mistral")
# layers, hidden, intermediate, heads, key and value heads, tied (the config.json of each model on the hub).
_QWEN3 = {
    "0.6b": (28, 1024, 3072, 16, 8, True),
    "1.7b": (28, 2048, 6144, 16, 8, True),
    "4b": (36, 2560, 9728, 32, 8, True),
    "8b": (36, 4096, 12288, 32, 8, False),
    "14b": (40, 5120, 17408, 40, 8, False),
    "32b": (64, 5120, 25600, 64, 8, False),
}


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes; widths in units, `context` in tokens, every `…parameters` a count of weights."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    context: int
    head_norms: bool = False  # Qwen3: an RMS norm over each head's query and key
    biased: tuple[str, ...] = ()  # the linear modules with a bias

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        return self.key_value_heads * self.head_dim

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """{name: (inputs, outputs)} of the linear modules of one layer."""
        return {
            "q_proj": (self.hidden, self.query_width),
            "k_proj": (self.hidden, self.key_width),
            "v_proj": (self.hidden, self.key_width),
            "o_proj": (self.query_width, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def linear_parameters(self) -> int:
        """In the weights of the decoder's linear layers, which are what is quantised; without the head."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.modules.values())

    @property
    def embedding_parameters(self) -> int:
        """Input embeddings, and the head where it is a matrix of its own."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def other_parameters(self) -> int:
        """Norms and biases."""
        norms = 2 * self.hidden + (2 * self.head_dim if self.head_norms else 0)
        biases = sum(self.modules[name][1] for name in self.biased)
        return self.layers * (norms + biases) + self.hidden

    @property
    def parameters(self) -> int:
        return self.linear_parameters + self.embedding_parameters + self.other_parameters


def of_folder(folder: Path) -> Shape | None:
    """The shape of the model in a folder; None where there is no config.json that can be read, or of another kind."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return of_config(settings) if isinstance(settings, dict) else None


def of_config(settings: Mapping[str, Any]) -> Shape | None:
    """The shape that a config.json tells; None for an architecture whose layers are not known here."""
    kind = settings.get("model_type")
    if kind not in KNOWN_TYPES:
        return None
    try:
        hidden, heads = int(settings["hidden_size"]), int(settings["num_attention_heads"])
        attention_bias = kind == "qwen2" or bool(settings.get("attention_bias"))
        biased = ["q_proj", "k_proj", "v_proj"] if attention_bias else []
        if attention_bias and kind != "qwen2":
            biased.append("o_proj")
        if settings.get("mlp_bias"):
            biased += ["gate_proj", "up_proj", "down_proj"]
        return Shape(
            layers=int(settings["num_hidden_layers"]),
            hidden=hidden,
            intermediate=int(settings["intermediate_size"]),
            heads=heads,
            key_value_heads=int(settings.get("num_key_value_heads") or heads),
            head_dim=int(settings.get("head_dim") or hidden // heads),
            vocabulary=int(settings["vocab_size"]),
            tied=bool(settings.get("tie_word_embeddings", False)),
            context=int(settings.get("max_position_embeddings") or 0),
            head_norms=kind == "qwen3",
            biased=tuple(biased),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def of_name(name: str) -> Shape | None:
    """The published shape of a Qwen3 model by its hub id, for hosts that have not seen its config.json yet."""
    organisation, _, model = name.lower().partition("/")
    family, _, size = model.partition("-")
    if (organisation, family) != ("qwen", "qwen3") or size.removesuffix("-base") not in _QWEN3:
        return None
    layers, hidden, intermediate, heads, key_value_heads, tied = _QWEN3[size.removesuffix("-base")]
    context = 32768 if size.endswith("-base") else 40960
    return Shape(layers, hidden, intermediate, heads, key_value_heads, 128, 151936, tied, context, head_norms=True)


def adapted_modules(shape: Shape, targets: str | Sequence[str]) -> dict[str, tuple[int, int]]:
    """{name: (inputs, outputs)} of one layer's modules that get an adapter; `targets` as lora_target_modules."""
    names = [name.strip() for name in targets.split(",")] if isinstance(targets, str) else list(targets)
    if names == [ALL_LINEAR]:
        return shape.modules
    ends = {name.rpartition(".")[2] for name in names}
    return {name: sizes for name, sizes in shape.modules.items() if name in ends}


def adapter_parameters(shape: Shape, rank: int, targets: str | Sequence[str]) -> int:
    """Weights of a LoRA adapter: rank x (inputs + outputs) for each adapted module (Hu et al. 2021, LoRA)."""
    return shape.layers * sum(rank * sum(sizes) for sizes in adapted_modules(shape, targets).values())
