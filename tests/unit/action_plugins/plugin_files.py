"""Loads a plugin of the project by its file: Ansible's loader needs no package, an import does."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[3]


def load(name: str) -> ModuleType:
    """The module action_plugins/<name>.py."""
    spec = importlib.util.spec_from_file_location(f"{name}_under_test", REPOSITORY / "action_plugins" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
