"""What is known of a base model before it is loaded or fetched: its shape, folder and download. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from trainer import base, copies, hub, shape, steps
from trainer.config import Parameters
from trainer.shape import Shape
from trainer.state import Layout


@dataclass(frozen=True)
class BaseFacts:
    """`folder` is that of a base that lies whole on this host, `download_bytes` None where nothing tells it."""

    shape: Shape | None
    source: str  # of the shape, in words
    folder: Path | None
    download_bytes: int | None


def of(parameters: Parameters, layout: Layout) -> BaseFacts:
    """The facts of the base that the parameters name; asks no network. InputError for a name that cannot be one."""
    name = parameters.model_name_or_path
    if not hub.is_remote(name):
        if name == base.NAME:
            return _embedded(layout)
        folder = Path(name).expanduser()
        found = shape.of_folder(folder)
        return BaseFacts(found, "its config.json" if found else "", folder, 0)
    listing = hub.pinned(parameters, layout)
    if listing is not None and (found := shape.of_folder(copies.location(layout, listing))):
        whole = copies.is_complete(layout, listing)
        where = copies.location(layout, listing) if whole else None
        return BaseFacts(found, "its config.json", where, 0 if whole else copies.missing_bytes(layout, listing))
    known = shape.of_name(name)
    to_come = copies.missing_bytes(layout, listing) if listing is not None else None
    return BaseFacts(known, "the published sizes of this name" if known else "", None, to_come)


def _embedded(layout: Layout) -> BaseFacts:
    """The embedded base is built on the host, after a recipe that tells its sizes."""
    folder = base.location(layout.models, steps.corpus())
    if found := shape.of_folder(folder):
        return BaseFacts(found, "its config.json", folder, 0)
    recipe = {**asdict(base.Recipe()), "model_type": "qwen3", "tie_word_embeddings": True}
    return BaseFacts(shape.of_config(recipe), "its recipe", None, 0)
