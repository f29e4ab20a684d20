"""Which benchmark questions a training file holds, the same or nearly: in one walk through the file. No torch."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from trainer.lines import Row

# Character-bigram overlap (Jaccard) from which two questions count as near the same: paraphrases that keep
# nine of ten characters lie above it, different questions of one subject below 0.5.
NEAR_SAME = 0.8
# What follows from it for two sets A and B with |A∩B| >= 0.8 |A∪B|: neither is larger than 5/4 of the other, and
# at most a fifth of B is not in A. So of any |B| // 5 + 1 bigrams of B, its anchors, at least one is in A.
LARGER = 1.25
_NO_WORD = re.compile(r"[\W_]+")


Leak = tuple[str, str, str]  # (benchmark id, training id, "the same as" | "near the same as")


class _Question(NamedTuple):
    benchmark: str
    name: str
    text: str
    bigrams: frozenset[str]


class Leakage:
    """Looks in training rows for the questions of some benchmarks, {name: rows}.

    Memory grows with the benchmarks and not with the rows. A row costs what it takes to spell its user turns, and
    only where one shares an anchor with a question what it takes to compare them.
    """

    def __init__(self, benchmarks: Mapping[str, Iterable[Row]]) -> None:
        self.found: dict[str, dict[str, Leak]] = {name: {} for name in benchmarks}
        self._questions = [
            _Question(benchmark, str(row.get("id")), text, bigrams(text))
            for benchmark, rows in benchmarks.items()
            for row in rows
            if (text := plain(question(row)))
        ]
        self._same: dict[str, list[int]] = {}
        self._anchored: dict[str, list[int]] = {}
        frequency = Counter(gram for item in self._questions for gram in item.bigrams)
        for index, item in enumerate(self._questions):
            self._same.setdefault(item.text, []).append(index)
            rarest = sorted(item.bigrams, key=lambda gram: (frequency[gram], gram))
            for gram in rarest[: len(rarest) // 5 + 1]:
                self._anchored.setdefault(gram, []).append(index)
        self._anchors = frozenset(self._anchored)
        self._most = int(LARGER * max((len(item.bigrams) for item in self._questions), default=0))

    def look(self, row: Row) -> None:
        """Look at all user turns of one training row."""
        for turn in user_turns(row):
            text = plain(turn)
            grams = self._comparable(text)
            near = {index for gram in self._anchors & grams for index in self._anchored[gram]}
            for index in sorted(near.union(self._same.get(text, ()))):
                benchmark, name, wanted, theirs = self._questions[index]
                found = self.found[benchmark]
                if wanted == text:
                    found[name] = (name, str(row.get("id")), "the same as")
                elif name not in found and _jaccard(grams, theirs) >= NEAR_SAME:
                    found[name] = (name, str(row.get("id")), "near the same as")

    def _comparable(self, text: str) -> frozenset[str]:
        """The bigrams of a text; none where its beginning alone has more than any question could be near to."""
        start = 4 * self._most
        grams = bigrams(text[:start])
        if len(grams) > self._most:
            return frozenset()
        return grams if len(text) <= start else bigrams(text)

    def told(self, benchmark: str) -> list[Leak]:
        """What was found of one benchmark: a row for each of its questions that training holds."""
        return list(self.found[benchmark].values())


def leakage(training: Iterable[Row], benchmark: Iterable[Row]) -> list[Leak]:
    """The benchmark questions among these training rows."""
    looked = Leakage({"": benchmark})
    for row in training:
        looked.look(row)
    return looked.told("")


def question(row: Row) -> str:
    """The last user turn of a row, or its query."""
    users = list(user_turns(row))
    return users[-1] if users else str(row.get("query") or "")


def user_turns(row: Row) -> Iterator[str]:
    messages = row.get("messages")
    for message in messages if isinstance(messages, list) else []:  # faulty rows are compared too
        if isinstance(message, dict) and message.get("role") == "user":
            yield str(message.get("content") or "")


def plain(text: str) -> str:
    """Letters and digits alone, in one spelling for each."""
    return _NO_WORD.sub("", unicodedata.normalize("NFKC", text).casefold())


def bigrams(text: str) -> frozenset[str]:
    return frozenset(map(str.__add__, text, text[1:]))


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other) if one and other else 0.0
