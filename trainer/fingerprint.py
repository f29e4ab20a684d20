"""What a result is bound to: hashes of code, data, base model, parameters and adapter. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from trainer import base, config, digest
from trainer.errors import InputError
from trainer.stages import Stage, StageTable
from trainer.state import Layout, read_json, write_json

# The modules whose text shapes an adapter, and those that shape its score. A changed comment in one of them
# asks for a new result: better once too often than a report that its code does not explain.
TRAINING_MODULES = (
    "budget", "choices", "continuation", "crew", "encoding", "estimate", "examples", "feed", "fitting", "ladder",
    "lines", "loop", "lowrank", "model", "packing", "prefixes", "resume", "shape", "sharding", "tokenised", "train",
)  # fmt: skip
EVALUATION_MODULES = (
    "characters", "crew", "data", "decoder", "encoding", "evaluate", "generate", "judges", "keypoints", "ladder",
    "latex", "leakage", "lines", "mathtext", "merging", "metrics", "records", "refusal", "sections", "seen",
)  # fmt: skip
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def of_files(folder: Path, names: Iterable[str]) -> str:
    """sha256 over names and contents; a missing file counts as missing, not as empty."""
    found = {name: digest.of_file(folder / name) if (folder / name).is_file() else None for name in names}
    return digest.of_value(found)


def of_modules(names: Iterable[str]) -> str:
    """sha256 over the text of the trainer modules of these names."""
    return of_files(Path(__file__).parent, [f"{name}.py" for name in names])


def of_code() -> str:
    """sha256 over the whole trainer package: what the plan's code check compares."""
    here = Path(__file__).parent
    names = [
        path.relative_to(here).as_posix()
        for path in sorted(here.rglob("*"))
        if path.suffix in (".py", ".yml", ".j2", ".jinja") and path.is_file()
    ]
    return of_files(here, names)


def of_adapter(folder: Path) -> str | None:
    """sha256 over an adapter's weights and configuration; None when one of them is missing."""
    if not all((folder / name).is_file() for name in ADAPTER_FILES):
        return None
    return of_files(folder, ADAPTER_FILES)


def of_base(parameters: config.Parameters, layout: Layout, corpus: Path) -> str:
    """The base model's hash: of its inputs when embedded, of its files when local, else of the pinned commit's files.

    Errors: those of `hub.resolve` for a repository that was never looked up before.
    """
    from trainer import hub  # it hashes with this module

    name = parameters.model_name_or_path
    if name == base.NAME:
        return base.input_hash(corpus)
    if hub.is_remote(name):
        return hub.resolve(parameters, layout).identity
    return of_folder(Path(name).expanduser(), layout)


def of_folder(folder: Path, layout: Layout) -> str:
    """sha256 over a local model's files, remembered by size and times: 16 GB are read only once."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    if not any(path.name == "config.json" for path in files):
        raise InputError(f"the base model folder {str(folder)!r} holds no config.json; name a model folder")
    stamp = [[p.name, p.stat().st_size, p.stat().st_mtime_ns, p.stat().st_ctime_ns] for p in files]
    memory = layout.cache / f"base_hash_{digest.of_value(str(folder.resolve()))[:16]}.json"
    known = read_json(memory)
    if known and known["stamp"] == stamp:
        return str(known["hash"])
    found = of_files(folder, [path.name for path in files])
    write_json(memory, {"schema": 1, "stamp": stamp, "hash": found})
    return found


def training_parts(
    stage: Stage, parameters: config.Parameters, data_root: Path, base_hash: str, previous: str,
    initial: str = "",
) -> dict[str, str]:  # fmt: skip
    """The hashes that an adapter depends on.

    `previous` is the training fingerprint of the stage before, `initial` the hash of the adapter that the training
    begins with, if it begins with one.
    """
    return {
        "data": digest.of_file(data_root / stage.data),
        "base": base_hash,
        "parameters": digest.of_value(config.by_scope(parameters, "training")),
        "modules": of_modules(TRAINING_MODULES),
        "previous": previous,
        **({"initial_adapter": initial} if initial else {}),
    }


def evaluation_parts(stage: Stage, table: StageTable, parameters: config.Parameters, data_root: Path) -> dict[str, str]:
    """The hashes that a score depends on, beside those of the adapter that is scored."""
    files = sorted(table.benchmarks.values()) if stage.benchmarks else []
    shaping = config.by_scope(parameters, "evaluation")
    if not stage.benchmarks:  # such a stage is judged on its own questions, whatever is said
        del shaping["gate_questions"]
    return {
        "benchmarks": of_files(data_root, files),
        "evaluation_parameters": digest.of_value(shaping),
        "evaluation_modules": of_modules(EVALUATION_MODULES),
        "gate": digest.of_value([dict(stage.gate), list(stage.benchmarks)]),
    }


def changed(before: Mapping[str, str] | None, after: Mapping[str, str]) -> list[str]:
    """The names of the parts that differ, in the order of `after`."""
    return [name for name, value in after.items() if not before or before.get(name) != value]
