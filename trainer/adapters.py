"""The folders of adapters: a fresh one beside the final one, and its switch into place. No torch."""

from __future__ import annotations

import shutil
from pathlib import Path

from trainer import fingerprint
from trainer.config import Parameters
from trainer.errors import InputError
from trainer.stages import Stage
from trainer.state import Layout, sync_file, sync_folder


def fresh_folder(layout: Layout, stage: Stage, mode: str) -> Path:
    """An empty folder beside the adapter's final one; for a new score it holds a copy of the adapter."""
    folder = layout.adapters / f".{stage.adapter}.new"
    if folder.exists():
        shutil.rmtree(folder)
    if mode == "train":
        folder.mkdir(parents=True)
    else:
        shutil.copytree(layout.adapters / stage.adapter, folder)
    return folder


def initial_hash(layout: Layout, stage: Stage, parameters: Parameters) -> str:
    """The hash of the adapter that the training of a stage begins with, "" for none; InputError when it cannot."""
    named = parameters.initial_adapter
    if named == "none":
        return ""
    folder = Path(named).expanduser()
    if not folder.is_absolute():
        raise InputError(f"initial_adapter is {named!r}; give the absolute path of an adapter on the host, or none")
    if folder.resolve() == (layout.adapters / stage.adapter).resolve():
        raise InputError(
            f"initial_adapter is {named!r}, which stage {stage.name} itself writes, so that every run would train it "
            "further; copy that adapter and name the copy"
        )
    found = fingerprint.of_adapter(folder)
    if found is None:
        raise InputError(
            f"initial_adapter is {named!r}, which lacks {' or '.join(fingerprint.ADAPTER_FILES)}; name an adapter's "
            "folder"
        )
    return found


def publish(fresh: Path, final: Path) -> None:
    """Put a finished adapter folder in its place; the one before is kept as `.<name>.previous`.

    Its files are on the disk before they count, because the checkpoints that could replace them go afterwards.
    OSError when that cannot be done; the former adapter is in its place then.
    """
    for path in fresh.rglob("*"):
        if path.is_file():
            sync_file(path)
    sync_folder(fresh)
    previous = final.with_name(f".{final.name}.previous")
    replaces = final.exists()
    if replaces:
        shutil.rmtree(previous, ignore_errors=True)
        final.rename(previous)
    try:
        fresh.rename(final)
    except OSError:
        if replaces:
            previous.rename(final)
        raise
    sync_folder(final.parent)
