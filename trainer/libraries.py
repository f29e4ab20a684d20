"""The libraries of the worker, imported once for all stages of a plan, without what they do on the way. No torch.

Measured on two cores with the pinned versions: 4.9 s of processor time as they are, 3.8 s without collections of
garbage, 3.1 s when bitsandbytes does not bring torch's compiler along.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

# What a stage calls; they bring torch, transformers, TRL and PEFT.
MODULES = ("trainer.model", "trainer.train", "trainer.generate")


def load() -> None:
    """Import everything that costs seconds; does nothing the second time."""
    if all(name in sys.modules for name in MODULES):
        return
    # With the package `kernels` transformers and bitsandbytes would fetch code from a hub: nothing comes unasked.
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
    with _without_collections():
        import torch

        with _without_compiling(torch), contextlib.suppress(Exception):  # a broken one is named where it is needed
            importlib.import_module("bitsandbytes")
        for name in MODULES:
            importlib.import_module(name)


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Within it no garbage is looked for; what stands there afterwards stays, and no later search looks at it.

    A search through the hundreds of thousands of objects of these libraries takes most of a second.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def _without_compiling(torch: Any) -> Iterator[None]:
    """Within it torch.compile leaves functions as they are.

    bitsandbytes has functions of its fallback compiled when it is imported, which imports the compiler (two
    seconds) and would start it at their first call. Our own choice of compiling a model is not touched.
    """

    def unchanged(function: Callable[..., Any] | None = None, **_: Any) -> Any:
        return (lambda later: later) if function is None else function

    before, torch.compile = torch.compile, unchanged
    try:
        yield
    finally:
        torch.compile = before
