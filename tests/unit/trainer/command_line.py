"""How tests call a command: what it returned, and its answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Call = Callable[..., tuple[int, str, list[str]]]
NOT_BUILT = {"model_name_or_path": "embedded"}  # no tokenizer to load, and no torch with it
FAILED = {"status": "failed", "message": "stage style broke", "exit_code": 5}


def answer_of(found: tuple[int, str, list[str]]) -> dict[str, Any]:
    assert found[0] == 0, found[2]
    return dict(json.loads(found[1]))
