"""Complete checkpoints: written whole or not at all, bound to what made them, chosen, rotated. No torch.

A checkpoint is the folder `step-<n>`. It is filled under another name, every file is fsynced, MANIFEST.json
(with size and sha256 of each file) comes last, and one rename makes it count. Steps decide what is newer,
never a file's time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.digest import of_file, of_value
from trainer.state import sync_file, sync_folder

SCHEMA = 1
MANIFEST = "MANIFEST.json"
KEPT = 2  # the newest, and the one before it in case the disk spoils the newest
COST_SHARE = 0.02  # of the training's time may go into checkpoints that nobody asked for by step
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes")
_COMPLETE = re.compile(r"step-(\d+)")
_UNFINISHED = re.compile(r"\.step-(\d+)\.\d+")  # .step-<n>.<pid of its writer>
_REMOVED = re.compile(r"\.step-(\d+)\.gone")
_WORDS = {"data": "the training data", "base": "the base model", "modules": "the trainer's code",
          "previous": "the stage before", "initial_adapter": "the adapter that it begins with",
          "device": "device", "dtype": "dtype", "processes": "the number of processes",
          "sharded": "shard_base"}  # fmt: skip
_SHOWN = ("device", "dtype", "processes", "sharded")  # with their values, which are no hashes

Skipped = dict[str, str]  # {"name", "reason"}


class Damaged(Exception):
    """Why a folder is no complete checkpoint."""


def made_with(
    parts: Mapping[str, str], parameters: Mapping[str, Any], versions: Mapping[str, str | None], device: str,
    dtype: str, processes: int = 1, sharded: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Everything that shapes a training, down to its rounding and its random numbers.

    Fingerprint parts, training parameters by value, libraries, device, dtype, how many processes share it, and
    whether they share the base's weights.
    """
    hashes = {name: parts[name] for name in ("data", "base", "modules", "previous")}
    hashes |= {"initial_adapter": parts["initial_adapter"]} if "initial_adapter" in parts else {}
    libraries = {name: versions.get(name) for name in LIBRARIES}
    place = {"device": device, "dtype": dtype, "processes": processes, "sharded": sharded}
    return {**hashes, "parameters": dict(parameters), "libraries": libraries, **place}


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two `made_with`, in words: values of parameters and libraries, names of hashed parts."""
    found = []
    for group in ("parameters", "libraries"):
        old, new = before.get(group) or {}, after.get(group) or {}
        for name in dict.fromkeys([*new, *old]):
            if old.get(name) != new.get(name):
                found.append(f"{name} was {old.get(name)}, is {new.get(name)}")
    for name, words in _WORDS.items():
        if before.get(name) != after.get(name):
            shown = f" was {before.get(name)}, is {after.get(name)}" if name in _SHOWN else " changed"
            found.append(words + shown)
    return found


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, the step it stands after, and the last step of its training."""

    path: Path
    step: int
    total_steps: int


@dataclass
class Choice:
    """The checkpoint to go on from (None: from the beginning), and each one passed over with its reason."""

    checkpoint: Checkpoint | None = None
    skipped: list[Skipped] = field(default_factory=list)


class Store:
    """The checkpoints of one stage, as made and read by a training with these inputs."""

    def __init__(self, folder: Path, inputs: Mapping[str, Any]) -> None:
        self.folder = folder
        self.inputs = dict(inputs)
        self.key = of_value(self.inputs)
        self.complete: list[int] = []  # steps that this process has verified or written

    def choose(self) -> Choice:
        """The newest complete checkpoint of the same inputs; OSError only when the folder cannot be listed."""
        choice = Choice()
        for step, path in _entries(self.folder):
            name = path.name
            if _UNFINISHED.fullmatch(name):
                choice.skipped.append({"name": name, "reason": "its writing was interrupted"})
                continue
            try:
                manifest = read_manifest(path)
                if manifest["key"] != self.key:
                    told = differences(manifest["made_with"], self.inputs)
                    raise Damaged("it was made otherwise: " + ("; ".join(told) or "its key differs"))
                if choice.checkpoint is None:
                    verify_files(path, manifest)
                    choice.checkpoint = Checkpoint(path, step, manifest["total_steps"])
                    self.complete.append(step)
            except Damaged as problem:
                choice.skipped.append({"name": name, "reason": str(problem)})
        return choice

    def write(self, step: int, total_steps: int, fill: Callable[[Path], None]) -> int:
        """Write a checkpoint whose files `fill` puts into a fresh folder; returns its bytes.

        Whatever `fill` or the disk raises goes on to the caller, the half-written folder being removed before.
        """
        _make_folder(self.folder)
        halves = [path for n, path in _entries(self.folder) if n == step and _UNFINISHED.fullmatch(path.name)]
        for path in halves[1:]:  # a host that dies in every writing must not fill its disk with them
            shutil.rmtree(path, ignore_errors=True)
        fresh = self.folder / f".step-{step}.{os.getpid()}"
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            fresh.mkdir()
            fill(fresh)
            files = {path.name: _synced(path) for path in sorted(fresh.iterdir())}
            manifest = {"schema": SCHEMA, "step": step, "total_steps": total_steps, "key": self.key,
                        "made_with": self.inputs, "files": files}  # fmt: skip
            with (fresh / MANIFEST).open("w", encoding="utf-8") as stream:
                json.dump(manifest, stream, ensure_ascii=False, indent=1)
                stream.flush()
                os.fsync(stream.fileno())
            sync_folder(fresh)
            _put_in_place(fresh, self.folder / f"step-{step}")
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        self.complete.append(step)
        self._rotate(step)
        return sum(item["size"] for item in files.values())

    def _rotate(self, newest: int) -> None:
        """Remove what the checkpoint just completed makes needless; what stays behind is tried again next time."""
        kept = sorted(set(self.complete))[-KEPT:]
        for step, path in _entries(self.folder):
            other = _COMPLETE.fullmatch(path.name) and _key_of(path) not in (None, self.key)
            # Above the newest lies only what was passed over: it is kept until its own step is reached again.
            if other or (step <= newest and not (_COMPLETE.fullmatch(path.name) and step in kept)):
                with contextlib.suppress(OSError):
                    _put_away(path)
        for path in self.folder.glob(".step-*.gone"):
            if _REMOVED.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)


def remove_all(folder: Path) -> None:
    """Remove every checkpoint of a stage, whole or not, and its folder when nothing else lies in it."""
    for _, path in _entries(folder):
        with contextlib.suppress(OSError):
            _put_away(path)
    if folder.is_dir():
        for path in folder.iterdir():
            if _REMOVED.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # something else lies there
            folder.rmdir()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint's folder; Damaged when it is missing or none of this schema."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Damaged(f"it has no {MANIFEST}") from None
    except (OSError, ValueError, RecursionError):
        raise Damaged(f"its {MANIFEST} cannot be read") from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        raise Damaged(f"its {MANIFEST} has the schema {schema!r}, known is {SCHEMA}")
    kinds = {"step": int, "total_steps": int, "key": str, "made_with": dict, "files": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(manifest.get(name), kind)]
    if wrong or manifest["key"] != of_value(manifest["made_with"]) or path.name != f"step-{manifest['step']}":
        raise Damaged(f"its {MANIFEST} does not fit it ({wrong[0] if wrong else 'step or key'})")
    return dict(manifest)


def verify_files(path: Path, manifest: Mapping[str, Any]) -> None:
    """Damaged when the folder does not hold exactly the files of its manifest, byte for byte."""
    try:
        found = {item.name: item for item in path.iterdir() if item.name != MANIFEST}
        odd = sorted(found.keys() ^ manifest["files"].keys())
        if odd:
            raise Damaged(f"{odd[0]} is {'not in its manifest' if odd[0] in found else 'missing'}")
        for name, item in found.items():
            told = manifest["files"][name]
            if item.is_symlink() or not item.is_file():
                raise Damaged(f"{name} is no regular file")
            if item.stat().st_size != told["size"]:
                raise Damaged(f"{name} has {item.stat().st_size} bytes instead of {told['size']}")
            if of_file(item) != told["sha256"]:
                raise Damaged(f"{name} has another sha256 than its manifest")
    except (OSError, KeyError, TypeError) as problem:
        raise Damaged(f"it cannot be read ({problem})") from None


class Schedule:
    """When a checkpoint is due: by steps as asked, and by time as long as that stays cheap.

    `save_steps` 0: not by steps; `save_seconds` 0: not by time. Seconds come from `clock`.
    """

    def __init__(
        self, save_steps: int, save_seconds: float, cost_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.save_steps = save_steps
        self.save_seconds = save_seconds
        self.cost_seconds = cost_seconds  # an estimate, until one was written
        self.clock = clock
        self.since = clock()

    @property
    def is_off(self) -> bool:
        return self.save_steps <= 0 and self.save_seconds <= 0

    def due(self, step: int, last: bool) -> bool:
        """Whether to write one after this step; the last one is worth it when it costs little of what it saves."""
        if self.save_steps > 0 and step % self.save_steps == 0:
            return True
        spent = self.clock() - self.since
        cheap = spent * COST_SHARE >= self.cost_seconds
        return cheap and (last or (self.save_seconds > 0 and spent >= self.save_seconds))

    def written(self, seconds: float) -> None:
        """A checkpoint was written, or tried, in so many seconds."""
        self.cost_seconds = seconds
        self.since = self.clock()


def _entries(folder: Path) -> Iterable[tuple[int, Path]]:
    """(step, folder) of everything that is or was to be a checkpoint, the highest step first; nothing else."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _COMPLETE.fullmatch(path.name) or _UNFINISHED.fullmatch(path.name)
        if match and path.is_dir() and not path.is_symlink():
            found.append((int(match[1]), path))
    return sorted(found, key=lambda item: (item[0], item[1].name), reverse=True)


def _key_of(path: Path) -> str | None:
    with contextlib.suppress(Damaged):
        return str(read_manifest(path)["key"])
    return None


def _put_in_place(fresh: Path, final: Path) -> None:
    """Give a complete checkpoint its name; what had it (damaged, or of other inputs) makes room."""
    before = _put_away(final) if final.exists() else None
    try:
        fresh.rename(final)
    except OSError:
        if before:
            before.rename(final)
        raise
    sync_folder(final.parent)


def _put_away(path: Path) -> Path:
    """Take a folder out of the count before its files go: half of it must not look like a damaged checkpoint."""
    step = next(match[1] for match in (_COMPLETE.fullmatch(path.name), _UNFINISHED.fullmatch(path.name)) if match)
    gone = path.with_name(f".step-{step}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    return gone


def _synced(path: Path) -> dict[str, Any]:
    sync_file(path)
    return {"size": path.stat().st_size, "sha256": of_file(path)}


def _make_folder(folder: Path) -> None:
    """The folder with its parents, durably."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)
