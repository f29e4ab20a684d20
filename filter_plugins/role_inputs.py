"""Filter for misspelt role inputs, which Ansible would let pass without a word."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def unknown_inputs(
    names: Iterable[str], specifications: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]] = ()
) -> list[str]:
    """A sentence for each name that no role knows, with the likeliest right one.

    `names`: the variables that begin like role inputs; `specifications`: the roles' argument_specs files;
    `outputs`: their vars files, whose names are visible to the whole play. Parameters (`trainer_hp_…`) are not
    judged here: trainer/config.py knows them.
    """
    known = {name for variables in outputs for name in variables or {}}
    for specification in specifications:
        for entry in specification["argument_specs"].values():
            known.update(entry.get("options") or {})
    sentences = []
    for name in sorted(set(names) - known):
        if name.startswith("trainer_hp_"):
            continue
        near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.7)
        hint = f"; did you mean {near[0]}?" if near else "; see the README of the role"
        sentences.append(f"no role has an input {name!r}{hint}")
    return sentences


class FilterModule:
    """Registers the filter with Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Filter names and their functions."""
        return {"unknown_inputs": unknown_inputs}
