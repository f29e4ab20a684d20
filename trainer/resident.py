"""The base model of a plan: loaded with the first stage that needs it, kept for the stages after it."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import base as embedded
from trainer import config, copies, fingerprint, hub, prepared, shape
from trainer import device as devices
from trainer.choices import Choices, for_base
from trainer.crew import ALONE, Crew
from trainer.state import Layout

if TYPE_CHECKING:
    from trainer.model import Base

COPY = "base_copy"  # the choice that says whether the 4-bit copy was read


class Resident:
    """Holds at most one base; `report(event, **fields)` hears what is done for it.

    Of several processes each loads it, one after another where they share it; the first one alone builds, fetches or
    prepares it before.
    """

    def __init__(self, layout: Layout, report: Callable[..., None], crew: Crew = ALONE) -> None:
        self.layout = layout
        self.report = report
        self.crew = crew
        self.base: Base | None = None
        self.key: tuple[Any, ...] = ()
        self.place: tuple[Any, ...] = ()
        self.folder = ""
        self.device: devices.Device | None = None
        self.spent: dict[str, float] = {}  # seconds of the last `get` that are no loading, by part

    def get(self, parameters: config.Parameters, corpus: Path) -> Base:
        """The base of these parameters, loaded once and kept for every stage that is to be run on it alike.

        Errors: those of building, fetching, choosing and loading it.
        """
        self.spent = {}
        place = tuple(getattr(parameters, name) for name in config.PLACE)
        if self.place != place:
            self.folder = self.crew.once(lambda: str(self._find(parameters, corpus)))
            self.place = place
        if self.device is None:
            found = devices.found()
            # What is chosen for the base must be the same in all processes, on cards of other sizes as well.
            self.device = replace(found, memory_bytes=min(self.crew.gather(found.memory_bytes)))
        choices = for_base(parameters, self.device, shape.of_folder(Path(self.folder)), self.crew.size)
        key = (place, *((choice.name, choice.value) for choice in choices.values()))
        if self.base is None or self.key != key:
            if self.base is not None:
                self.base = None
                gc.collect()  # a device has no room for two, and adapters leave cycles
            self.base, self.key = self._load(parameters, self.device, choices, corpus), key
        return self.base

    def _find(self, parameters: config.Parameters, corpus: Path) -> Path:
        """Where the base lies on this host, built or fetched if it is not there yet."""
        if parameters.model_name_or_path == embedded.NAME:
            return embedded.build(self.layout.models, corpus, say=self._say)
        if hub.is_remote(parameters.model_name_or_path):
            return copies.fetch(parameters, self.layout, self._say, self._phase)
        return Path(parameters.model_name_or_path)

    def _content(self, parameters: config.Parameters, corpus: Path) -> str:
        """The hash of what lies there; a built base is known by its files, not by what it was built from."""
        if parameters.model_name_or_path == embedded.NAME:
            return fingerprint.of_folder(Path(self.folder), self.layout)
        return fingerprint.of_base(parameters, self.layout, corpus)

    def _load(self, parameters: config.Parameters, device: devices.Device, choices: Choices, corpus: Path) -> Base:
        """Load the base; a quantised one from its prepared copy, which is made when there is none."""
        from trainer import model

        if not choices.value("quantise"):
            load = functools.partial(model.load_base, self.folder, parameters, device=device, choices=choices)
            return self.crew.one_by_one(load) if choices.value("shard_base") else load()

        def find() -> tuple[prepared.Inputs, Path | None]:
            content = self._content(parameters, corpus)
            inputs = prepared.inputs_of(content, model.NF4, choices.value("dtype"), device.kind)
            return inputs, prepared.find(self.layout, inputs, self._say)

        began = time.monotonic()
        inputs, copy = self.crew.once(find)
        self.spent["check_seconds"] = time.monotonic() - began
        base = model.load_base(self.folder, parameters, device=device, choices=choices, copy=copy)
        if copy is not None:
            base.choices.add(COPY, "read", f"{copy.name} holds the 4 bits of this base")
            return base
        began = time.monotonic()
        made = prepared.make(self.layout, inputs, base.model, self._say) if self.crew.is_first else None
        self.spent["prepare_seconds"] = time.monotonic() - began
        words = ("made", f"{made.name} is read by later plans") if made else ("none", "the log says why")
        base.choices.add(COPY, *words)
        return base

    def _phase(self, name: str) -> None:
        self.report("phase", phase=name)

    def _say(self, text: str) -> None:
        print(text, flush=True)
        self.report("note", text=text)
