"""How a stage is run on this host: each choice with its reason. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Choice:
    """What was chosen and why, in a sentence for the report."""

    name: str
    value: Any
    reason: str


class Choices(dict[str, Choice]):
    """Choices by name, in the order in which they were made."""

    def add(self, name: str, value: Any, reason: str) -> None:
        self[name] = Choice(name, value, reason)

    def value(self, name: str) -> Any:
        """What was chosen; KeyError for a name that nobody has chosen yet."""
        return self[name].value

    def table(self) -> list[dict[str, Any]]:
        """[{name, value, reason}] as the report holds it."""
        return [asdict(choice) for choice in self.values()]
