"""What all commands share: their arguments, how they answer, and which roots may be trained in. No torch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from trainer import artifacts
from trainer.errors import InputError
from trainer.state import Layout

Arguments = argparse.Namespace


def answer(arguments: Arguments, value: dict[str, Any]) -> None:
    """Print an answer: as one JSON object, or its lines."""
    if arguments.json:
        print(json.dumps(value, ensure_ascii=False))
    else:
        print("\n".join(value.get("lines") or []), end="\n" if value.get("lines") else "")


def training_root(root: Path) -> Layout:
    """The layout of a root that may be trained in; a copy that was collected from a host may not."""
    layout = Layout(root)
    if (layout.outputs / artifacts.COLLECTED).exists():
        raise InputError(
            f"{layout.outputs} is a copy that was collected from a host; name the host's folder with --project-root"
        )
    return layout
