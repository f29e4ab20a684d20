"""The form of an answer: the sections that its own prompt requires, and what an answer's form lacks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.data import Row
from trainer.mathtext import without_thinking
from trainer.records import response, text_of

_ENDED = frozenset({"stop", "eos", "eos_token", "stop_sequence", "end_turn", "tool_calls"})

_THINK_MARK = re.compile(r"</?think(?:ing)?\b[^>]*>", re.IGNORECASE)
_BRACKETED = r"[ \t]*[（(][^（）()\n]*[）)]"
_PROMPT_LINE = re.compile(r"^[ \t]*(?:[-*+•>]|\d+[.、)）])?[ \t]*(#{2,6}|#(?=[ \t]))([ \t]*)([^#\n]+)$")
_PROMPT_INLINE = re.compile(
    r"(?<![A-Za-z0-9#])(#{2,6}|#(?=[ \t]))([ \t]*)([^\s#/、，。,;；:：|`\"“”'‘’「」『』（()）]+"
    rf"(?:[ \t]+[A-Z][A-Za-z]*)*(?:{_BRACKETED})?)"
)
_TAIL = re.compile(
    r"(?:(?:这|共|等)?[二两三四五六七八]\s*个?(?:小节|部分|小标题|标题|节|段|栏).*"
    r"|以及|和|与|及|并|再)$"
)
_FORBIDDEN = re.compile(
    r"(?:不要|不得|不写|不用|避免|禁止|勿|do not|don't|never)"
    r"(?!.{0,6}(?:省|缺|漏|跳过|改|合并|omit|skip|drop|rename))"
    r"[^。；;\n.]*$",
    re.IGNORECASE,
)
_HEADING = re.compile(r"^ {0,3}(#{1,6})([ \t\u3000]*)(.*?)[ \t#]*$")
_TITLE = re.compile(rf"([^（(:：]*)(?:{_BRACKETED})?[ \t]*(?:[:：](.*))?")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")


@dataclass(frozen=True)
class Section:
    """A required section. `label` as the prompt writes it; `spaced`: a space stands after the
    marks."""

    label: str
    level: int
    name: str
    spaced: bool


def required_sections(row: Row) -> list[Section]:
    """The sections that the row's own system prompt names, in their order, each once.

    A line that is a heading is taken whole (up to a colon or dash); headings inside a sentence
    end at punctuation, white space or "三个部分". A bracket (`### 检查（…）`) is no part of the
    name, so any bracket or none is accepted in the answer. A heading that the prompt forbids
    ("不要写 ### 总结") is not required.
    """
    found: dict[tuple[int, str], Section] = {}
    for message in row.get("messages") or []:
        if message.get("role") != "system":
            continue
        for line in text_of(row, message.get("content"), "benchmark").splitlines():
            for section in _named_sections(line):
                found.setdefault((section.level, section.name), section)
    return list(found.values())


def _named_sections(line: str) -> list[Section]:
    whole = _PROMPT_LINE.match(line)
    matches = [whole] if whole else list(_PROMPT_INLINE.finditer(line))
    out = []
    for match in matches:
        if not whole and _FORBIDDEN.search(line[: match.start()]):
            continue
        text = re.split(r"[:：]|\s[-–—]|——", match[3])[0] if whole else _TAIL.sub("", match[3])
        text = text.replace("*", "").replace("`", "").strip()
        name = _bare(re.split(r"[（(]", text)[0])
        if name:
            label = f"{match[1]}{' ' if match[2] else ''}{text}"
            out.append(Section(label, len(match[1]), name, bool(match[2])))
    return out


def _bare(heading: str) -> str:
    return unicodedata.normalize("NFKC", heading).strip().casefold()


def format_faults(row: Row, prediction: Row) -> list[str]:
    """What the answer's form lacks, in words; empty means compliant.

    Every required section once, in order, with content; no think mark left, even an empty one;
    ended by the stop token: `finish_reason` "length" (the cap) or any other reason but stop
    fails, an absent one is taken as ended. Headings in code fences do not count; other headings
    are allowed. Without required sections the answer only has to be there and to end. The number
    of `#` must be the prompt's.
    """
    answer = response(prediction)
    faults = []
    if _THINK_MARK.search(answer):
        faults.append("think block left in the answer")
    reason = prediction.get("finish_reason")
    if reason == "length":
        faults.append("cut off: reached the cap of new tokens before the stop token")
    elif reason is not None and reason not in _ENDED:
        faults.append(f"not ended by the stop token: finish_reason {reason}")
    return faults + _section_faults(required_sections(row), without_thinking(answer))


def _section_faults(required: Sequence[Section], text: str) -> list[str]:
    places: dict[Section, list[int]] = {section: [] for section in required}
    bodies: list[str] = []  # one for each heading that can end a section, in order
    fence = ""
    for line in text.splitlines():
        mark = _FENCE.match(line)
        heading = None if fence or mark else _HEADING.match(line)
        section, rest = _section_of(heading, required) if heading else (None, "")
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        if heading and (section or any(len(heading[1]) <= item.level for item in required)):
            bodies.append(rest)
            if section:
                places[section].append(len(bodies) - 1)
        elif bodies and not heading:
            bodies[-1] += "\n" + line
    faults = [f"section missing: {item.label}" for item in required if not places[item]]
    faults += [f"section repeated: {item.label}" for item in required if len(places[item]) > 1]
    for item in required:
        if places[item] and not any(_has_content(bodies[index]) for index in places[item]):
            faults.append(f"section empty: {item.label}")
    order = [item.label for item in sorted((s for s in required if places[s]), key=lambda s: places[s][0])]
    if order != [item.label for item in required if places[item]]:
        faults.append("sections out of order: " + " / ".join(order))
    return faults


def _section_of(heading: re.Match[str], required: Sequence[Section]) -> tuple[Section | None, str]:
    """The required section that a heading line is, with the text that follows a colon on that
    line."""
    for section in required:
        if len(heading[1]) != section.level or (section.spaced and not heading[2]):
            continue
        title = _TITLE.fullmatch(re.sub("[*`]", "", heading[3]).strip())
        if title and _bare(title[1]) == section.name:
            return section, title[2] or ""
    return None, ""


def _has_content(body: str) -> bool:
    return any(unicodedata.category(char)[0] in "LN" or unicodedata.category(char) == "Sm" for char in body)
