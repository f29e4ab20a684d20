"""The base model of a plan: loaded with the first stage that needs it, kept for the stages after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import base as embedded
from trainer import config, copies, hub
from trainer.crew import ALONE, Crew
from trainer.state import Layout

if TYPE_CHECKING:
    from trainer.model import Base

# What a loaded base depends on.
SHAPING = ("model_name_or_path", "model_revision", "use_modelscope", "use_qlora", "compute_dtype", "attention",
           "fused_kernels")  # fmt: skip


class Resident:
    """Holds at most one base; `report(event, **fields)` hears what is done for it.

    Of several processes each loads it; the first one alone builds or fetches it before.
    """

    def __init__(self, layout: Layout, report: Callable[..., None], crew: Crew = ALONE) -> None:
        self.layout = layout
        self.report = report
        self.crew = crew
        self.base: Base | None = None
        self.key: tuple[Any, ...] = ()

    def get(self, parameters: config.Parameters, corpus: Path) -> Base:
        """The base of these parameters, loaded once and kept for the next stage."""
        from trainer import model

        key = tuple(getattr(parameters, name) for name in SHAPING)
        if self.base is None or self.key != key:
            self.base = None
            folder = self.crew.once(lambda: str(self._folder(parameters, corpus)))
            self.base, self.key = model.load_base(folder, parameters), key
        return self.base

    def _folder(self, parameters: config.Parameters, corpus: Path) -> Path:
        """Where the base lies on this host, built or fetched if it is not there yet."""
        if parameters.model_name_or_path == embedded.NAME:
            return embedded.build(self.layout.models, corpus, say=self._say)
        if hub.is_remote(parameters.model_name_or_path):
            return copies.fetch(parameters, self.layout, self._say, self._phase)
        return Path(parameters.model_name_or_path)

    def _phase(self, name: str) -> None:
        self.report("phase", phase=name)

    def _say(self, text: str) -> None:
        print(text, flush=True)
        self.report("note", text=text)
