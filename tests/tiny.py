"""`python -m tests.tiny FOLDER`: FOLDER/base, a base model, and FOLDER/data, rows that it learns in seconds.

What the fixtures of conftest.py give to tests, for hosts on which no test runs: the scenarios of the roles.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.conftest import CORPUS, make_recipe, write_data
from trainer.base import build


def main(folder: Path) -> None:
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    (corpus / "course.md").write_text(CORPUS, encoding="utf-8")
    build(folder / "models", corpus, make_recipe()).rename(folder / "base")
    write_data(folder / "data")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
