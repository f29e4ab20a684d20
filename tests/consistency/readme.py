"""The generated tables of the README: `python tests/consistency/readme.py --write` writes them anew."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from trainer.tables import markdown_parameters, markdown_stages  # noqa: E402 - the path comes first

TABLES = {"stages": markdown_stages, "parameters": markdown_parameters}


def with_tables(text: str) -> str:
    """The README's text with each table between its markers made anew."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        text = f"{head}{begin}\n{make()}\n{end}{tail}"
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    if "--write" in sys.argv:
        readme.write_text(with_tables(readme.read_text(encoding="utf-8")), encoding="utf-8")
