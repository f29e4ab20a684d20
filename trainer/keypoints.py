"""Key points: what an answer has to say, given explicitly or derived from a reference answer.

Explicit points are matched by exact normal form (`mathtext.contains`), any one alternative being
enough. Negation is out of scope: "not a conservative field" covers the point "conservative
field".

Derived points, for rows that carry only a reference answer, follow this rule:
1. Think blocks, code fences, headings, lines that are one bold label, and list marks are removed.
2. What is left is cut at 。；！？ ! ? ; at a full stop before white space and at line ends, never
   inside a formula; a fragment of more than 40 letters and digits is cut again at commas.
3. A leading connective is removed; fragments of fewer than 6 letters and digits go, and so do
   those that the question itself already covers, and repetitions.
4. At most 12 are kept, spread evenly over the answer. If none is left, the whole answer is the
   one point.

An answer is seldom word for word, so a derived point is covered when, in some stretch of the
answer twice the point's length, at least 70 % of the point's character pairs occur, and the
answer has every number of the point. The threshold is this project's own: with it the reference
scores 1.0 (by construction: fragments that do not match their own reference are dropped), an
empty answer 0.0, and answers to other questions of the same course stay below 0.2 (tested). It
measures likeness, not truth.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.characters import CJK, GREEK, LATIN
from trainer.mathtext import contains, normal, without_thinking

THRESHOLD = 0.7
MAX_DERIVED = 12
MIN_SIGNS = 6
LONG_SIGNS = 40

_SIGN = re.compile(f"[{LATIN}0-9{GREEK}{CJK}]")
_NUMBER = re.compile(r"(?<![A-Za-z_^\d.])\d+(?:\.\d+)*(?:e-?\d+)?")
_FORMULA = r"\$\$.*?\$\$|\$[^$\n]+\$|\\\(.*?\\\)|\\\[.*?\\\]|`[^`\n]*`"
_SENTENCE_END = re.compile(rf"({_FORMULA})|[。；！？!?;]+|\.(?=\s)|\n+", re.DOTALL)
_COMMA = re.compile(rf"({_FORMULA}|[（(][^（）()\n]*[）)])|，|,(?=\s)", re.DOTALL)
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,}).*?(?:^[ \t]*\1[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^[ \t]*(?:#{1,6}.*|\*\*[^*\n]{1,30}\*\*[ \t]*[:：]?[ \t]*)$", re.MULTILINE)
_LIST_MARK = re.compile(r"^[ \t]*(?:[-*+•>]|\d{1,2}[.、)）]|[（(]\d{1,2}[)）]|[①-⑳])(?!\d)[ \t]*", re.MULTILINE)
_CONNECTIVE = re.compile(
    r"^(?:因此|所以|于是|从而|由此可见|由此|可见|综上所述|综上|总之|首先|其次|再次|然后|接着|最后|另外|此外|同时"
    r"|例如|比如|也就是说|换句话说|注意|但是|不过|然而|而且|并且|即|故|但|而"
    r"|(?i:therefore|hence|thus|so|however|finally|then|moreover)\b)[，,:： \t]*"
)


@dataclass(frozen=True)
class KeyPoint:
    """One thing to say: `alternatives` as written (any one suffices); derived points are matched
    loosely."""

    alternatives: tuple[str, ...]
    derived: bool = False

    @property
    def label(self) -> str:
        return self.alternatives[0]


def explicit(values: object) -> list[KeyPoint]:
    """Key points of `expected.key_points`; ValueError for a value that no answer could be held
    against.

    Each is a string, a list of alternatives, `{"any": [...]}` or `{"text": ..., "alternatives":
    [...]}`.
    """
    if values is None:
        return []
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(f"key_points is {values!r}; give a list of strings or of lists of alternatives")
    return [_explicit(value) for value in values]


def _explicit(value: object) -> KeyPoint:
    found: list[object] = []
    if isinstance(value, Mapping):
        for part in (value.get("text"), value.get("any"), value.get("alternatives")):
            found += list(part) if isinstance(part, (list, tuple)) else [] if part is None else [part]
    else:
        found = list(value) if isinstance(value, (list, tuple)) else [value]
    texts = tuple(item for item in found if isinstance(item, str) and normal(item))
    if not texts or len(texts) != len(found):
        raise ValueError(f"key point {value!r} cannot be matched; give text, or a list of alternatives")
    return KeyPoint(texts)


def derive(reference: str, question: str = "") -> list[KeyPoint]:
    """Derived key points of a reference answer (rule above); empty only for an answer without
    content."""
    body = without_thinking(reference)
    whole = normal(body)
    asked = normal(question)
    points: dict[str, KeyPoint] = {}
    for fragment in _fragments(body):
        point = KeyPoint((fragment,), derived=True)
        if covered(point, whole) and not covered(point, asked):
            points.setdefault(normal(fragment), point)
    chosen = list(points.values())
    if len(chosen) > MAX_DERIVED:
        step = (len(chosen) - 1) / (MAX_DERIVED - 1)
        chosen = [chosen[round(step * index)] for index in range(MAX_DERIVED)]
    if chosen or not whole:
        return chosen
    point = KeyPoint((_prose(body),), derived=True)
    usable = normal(point.label) and covered(point, whole)
    return [point if usable else KeyPoint((body,), derived=True)]


def covered(point: KeyPoint, answer: str) -> bool:
    """Whether an answer, given in its normal form, covers the point."""
    if point.derived:
        return _resembles(normal(point.label), answer)
    return any(contains(normal(text), answer) for text in point.alternatives)


def _prose(text: str) -> str:
    return _LIST_MARK.sub("", _HEADING.sub("", _FENCE.sub("\n", text))).strip()


def _fragments(text: str) -> list[str]:
    """Statements in their order, cut and cleaned by steps 1 to 3 of the rule."""
    pieces: list[str] = []
    for sentence in _cut(_prose(text), _SENTENCE_END):
        pieces += _cut(sentence, _COMMA) if _signs(sentence) > LONG_SIGNS else [sentence]
    cleaned = (_CONNECTIVE.sub("", piece.strip()).strip() for piece in pieces)
    return [piece for piece in cleaned if _signs(piece) >= MIN_SIGNS]


def _cut(text: str, mark: re.Pattern[str]) -> list[str]:
    """Text between the marks; group 1 of a mark is a stretch that must not be cut."""
    pieces, start = [], 0
    for match in mark.finditer(text):
        if match[1] is None:
            pieces.append(text[start : match.start()])
            start = match.end()
    return [*pieces, text[start:]]


def _signs(text: str) -> int:
    return len(_SIGN.findall(normal(text)))


def _resembles(point: str, answer: str) -> bool:
    """The loose match on normal forms; what is too short for pairs must stand there as it is."""
    sought = re.sub("[ ;]", "", point)
    if len(_SIGN.findall(sought)) < MIN_SIGNS:
        return _stands_alone(point, answer)
    if not set(_NUMBER.findall(point)) <= set(_NUMBER.findall(answer)):
        return False
    text = re.sub("[ ;]", "", answer)
    pairs = {sought[i : i + 2] for i in range(len(sought) - 1)}
    width, step = 2 * len(sought), max(1, len(sought) // 4)
    for start in range(0, max(1, len(text)), step):
        stretch = text[start : start + width]
        if sum(pair in stretch for pair in pairs) >= THRESHOLD * len(pairs):
            return True
    return False


def _stands_alone(point: str, answer: str) -> bool:
    """A very short point: with a number or formula it may stand anywhere, mere words only as a
    clause."""
    if re.search(f"[^{CJK}{LATIN} ;]", point):
        return contains(point, answer)
    return f";{point};" in f";{answer};"
