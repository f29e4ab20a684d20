"""The 4-bit copy of a base: quantised once on a host, read by every later plan.

Quantising reads all 16 bits of an 8B model and leaves transformers' threaded reader unused; the saved copy is a third
of the size, is read by it, and is bit-equal. `models/prepared-<key>/` is bound to all that shapes the 4 bits, counts
only when its manifest, written last, says so and every file has its hash, and is nothing that a plan depends on: a
copy that is damaged or cannot be made costs time, never a stage.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from trainer import digest, state, system
from trainer.copies import SPARE_BYTES, size
from trainer.encoding import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Say = Callable[[str], None]
Inputs = dict[str, Any]
MANIFEST = "manifest.json"
FORMAT = 1
LIBRARIES = ("bitsandbytes", "torch", "transformers")  # that quantise, compute and name what is saved
SHARD = "2GB"  # of a GPU's weights so many pass through the host's memory at a time
OLD_BYTES = 1_000_000_000  # copies of other settings are told of when they take more


def inputs_of(base_hash: str, settings: dict[str, Any], dtype: str, device: str) -> Inputs:
    """All that shapes the bits of a copy; `settings` are those of the quantisation, `device` quantised it."""
    libraries = {name: metadata.version(name) for name in LIBRARIES}
    return {"format": FORMAT, "base": base_hash, "settings": settings, "dtype": dtype, "device": device, **libraries}


def location(models: Path, inputs: Inputs) -> Path:
    """Where the copy of these inputs lies or will lie."""
    return models / f"prepared-{digest.of_value(inputs)[:16]}"


def find(layout: state.Layout, inputs: Inputs, say: Say) -> Path | None:
    """The copy of these inputs, verified; None where there is none. A damaged one is named and not used.

    Its files are read again only when their sizes or times are not those of the last time (`outputs/cache`).
    """
    folder = location(layout.models, inputs)
    if not folder.is_dir():
        return None
    if reason := _damage(folder, inputs, layout.cache / f"{folder.name}.json"):
        say(f"base: the nf4 copy {folder.name} is not used: {reason}")
        return None
    return folder


def _damage(folder: Path, inputs: Inputs, memory: Path) -> str:
    """Why a copy cannot be used, empty for one that can."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, made_of = dict(manifest["files"]), dict(manifest["inputs"])
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was never finished"
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {MANIFEST} cannot be read"
    if made_of != json.loads(json.dumps(inputs)):
        odd = next(name for name in sorted({*made_of, *inputs}) if made_of.get(name) != inputs.get(name))
        return f"it was made of another base or with other settings ({odd} differs)"
    there = {path.name for path in folder.iterdir()} - {MANIFEST}
    if there != set(files):
        odd = sorted(there ^ set(files))[0]
        return f"{odd} is {'missing' if odd in files else 'not one of its files'}"
    stamp = _stamp(folder)
    known = None
    with contextlib.suppress(state.StateError):  # then the files are read again
        known = state.read_json(memory)
    if known and known.get("stamp") == stamp:
        return ""
    for name, expected in files.items():
        if (folder / name).is_symlink() or digest.of_file(folder / name) != expected:
            return f"{name} is damaged"
    with contextlib.suppress(OSError):
        state.write_json(memory, {"schema": state.SCHEMA, "stamp": stamp})
    return ""


def _stamp(folder: Path) -> list[list[Any]]:
    found = []
    for path in sorted(folder.iterdir()):
        told = path.lstat()
        found.append([path.name, told.st_size, told.st_mtime_ns, told.st_ctime_ns])
    return found


def make(layout: state.Layout, inputs: Inputs, model: PreTrainedModel, say: Say) -> Path | None:
    """Save a model that was just quantised as the copy of these inputs, in the place of a damaged one.

    None, with a note, where there is no room, the disk fails, or another process is at it.
    """
    target, began = location(layout.models, inputs), time.monotonic()
    with contextlib.ExitStack() as stack:
        try:
            layout.models.mkdir(parents=True, exist_ok=True)
            if not stack.enter_context(_alone(layout.models)):
                return None
            _sweep(layout.models)
            if lack := _lack_of_room(layout.models, model.get_memory_footprint()):
                say(f"base: no nf4 copy is prepared: {lack}")
                return None
            _write(target, inputs, model)
        except (OSError, SafetensorError) as problem:
            say(f"base: no nf4 copy could be prepared ({first_line(problem)}); the next plan quantises again")
            return None
    seconds, taken = time.monotonic() - began, _bytes(target)
    say(f"base: nf4 copy prepared in {seconds:.0f} s ({size(taken)}), later plans read it ({target.name})")
    _tell_of_others(target, say)
    return target


def _lack_of_room(models: Path, needed: int) -> str:
    """Why a copy of `needed` bytes should not be written: checkpoints and results keep as much room as it takes."""
    free = shutil.disk_usage(models).free
    if free >= 2 * needed + SPARE_BYTES:
        return ""
    return f"it takes {size(needed)} and should leave as much free, {size(free)} are free in {models.name}"


def _write(target: Path, inputs: Inputs, model: PreTrainedModel) -> None:
    """The copy under its final name, whole and durable, or nothing at all."""
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        dtype = model.config.dtype
        try:
            model.save_pretrained(str(fresh), max_shard_size=SHARD)
        finally:
            model.config.dtype = dtype  # it leaves the type's name there
        files = {path.name: digest.of_file(path) for path in sorted(fresh.iterdir())}
        for name in files:
            state.sync_file(fresh / name)
        state.write_json(fresh / MANIFEST, {"schema": state.SCHEMA, "inputs": inputs, "files": files})
        if not (target.exists() and system.exchange(fresh, target)):
            shutil.rmtree(target, ignore_errors=True)
            fresh.rename(target)
        state.sync_folder(target.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextlib.contextmanager
def _alone(models: Path) -> Iterator[bool]:
    """Whether this process is the only one that makes a copy; the system lets go when a process ends."""
    with (models / ".prepared.lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _sweep(models: Path) -> None:
    """Remove what makers left that were killed; only the one that is alone may."""
    for path in models.glob(".prepared-*.*"):
        shutil.rmtree(path, ignore_errors=True)


def _tell_of_others(target: Path, say: Say) -> None:
    """Copies of other bases, settings or library versions are the user's to delete."""
    others = [path for path in sorted(target.parent.glob("prepared-*")) if path != target and path.is_dir()]
    taken = sum(_bytes(path) for path in others)
    if taken > OLD_BYTES:
        names = ", ".join(path.name for path in others)
        say(f"base: other nf4 copies take {size(taken)} in models; delete those that no plan needs: {names}")


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.iterdir())
