"""Normal forms of text and mathematics, so that equal statements written differently compare
equal.

`normal` maps a text to its normal form, `contains` asks whether one normal form stands inside
another.

What is made equal (everything else stays different):
- Unicode NFKC, except that superscripts and subscripts stay mathematics: `ε₀` -> `ε_0`, `x²` ->
  `x^2`;
- case of Latin letters (`E` and `e`, `mV` and `MV` too); Greek keeps its case, because Ω is not
  ω;
- white space, quotation marks, Markdown marks, `$` and `\\(`; prose punctuation of either width
  becomes one break, written `;`, which `contains` may skip;
- LaTeX and Unicode: `\\varepsilon_{0}` = `\\epsilon_0` = `ε₀`, `\\frac{a}{bc}` = `a/(bc)`,
  `\\sqrt{x}` = `√x`, `\\vec E` = `\\mathbf{E}` = `\\hat E` = `E` (arrow, hat and bold are
  dropped), operators and arrows by name;
- numbers by value: `9.0` = `9`, `1.6×10^{-19}` = `1.6e-19`, `10^3` = `1000`, `1,000` = `1000`.

What is not: algebra (`a·b` is not `ba`, `1/4πε₀` without brackets is not `1/(4πε₀)`), units
(`V/m`, `N/C`), `·` and `×` between symbols (divergence and curl). Such variants are for a key
point's alternatives.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache

from trainer.characters import CJK, GREEK, LATIN, scripts, unified
from trainer.latex import linear

_SYMBOL = f"{LATIN}0-9{GREEK}"
_MAX_PASSES = 12

_LINE_MARK = re.compile(r"^[ \t]*(?:(?:[-+*•·>]|#{1,6})[ \t]+)+", re.MULTILINE)
_HTML_SCRIPT = re.compile(r"<(sub|sup)>([^<]{0,80})</\1>", re.IGNORECASE)
_THINK_BLOCK = re.compile(r"<think(?:ing)?\b[^>]*>.*?</think(?:ing)?\s*>", re.IGNORECASE | re.DOTALL)
_THINK_OPEN = re.compile(r"<think(?:ing)?\b[^>]*>.*\Z", re.IGNORECASE | re.DOTALL)
_THINK_CLOSE = re.compile(r"\A.*</think(?:ing)?\s*>", re.IGNORECASE | re.DOTALL)

_NUMBER = r"\d+(?:\.\d+)?"
_POWER_OF_TEN = re.compile(
    rf"(?:(?<![{LATIN}\d._^/])({_NUMBER}) ?× ?|(?<![{LATIN}\d._^]))10 ?\^ ?"
    rf"(?:\(([+-]?\d{{1,3}})\)|([+-]?\d{{1,3}})(?![.\d]))"
)
_EXPONENT = re.compile(rf"(?<![{LATIN}\d._^])({_NUMBER})[eE]([+-]?\d{{1,3}})(?![\d{LATIN}]|\.\d)")
_DECIMAL = re.compile(rf"(?<![{LATIN}\d.])(?:\d+\.\d+|[1-9]\d{{6,24}})(?![.]?\d|e-?\d)")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_SUBSCRIPT = rf"(?:_(?:\d+|[{LATIN}]+|[{GREEK}]|[{CJK}]+))?"
_ATOM = rf"[∂Δδ]?(?:[{LATIN}]+|[{GREEK}]){_SUBSCRIPT}'*"

_Rules = list[tuple[re.Pattern[str], str]]


def _compiled(*rules: tuple[str, str]) -> _Rules:
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


# Each rule rewrites linear text (LaTeX is gone) towards its shortest unambiguous spelling:
# operators first, then (in `_once`) numbers, then scripts, brackets, spaces and breaks.
_OPERATORS = _compiled(
    (r"\\", ""),
    (r"<=", "≤"),
    (r">=", "≥"),
    (r"!=", "≠"),
    (r"-+>", "→"),
    (r"=>", "⇒"),
    (r":?=+", "="),
    (r"~(?!\s*\d)", " "),
    (r"[\r\n\f\v\x1c-\x1e\x85\u2028\u2029]+", ";"),
    (r"\s+", " "),
    (rf"(?<=[{_SYMBOL})\]']) \* (?=[{_SYMBOL}(\[√∂∇])", "×"),
    (rf"(?<=[{_SYMBOL})\]'])\*(?=[{_SYMBOL}(\[√∂∇])", "×"),
    (r"[*#$\"&]", ""),
    (r"(?<=\d) ?· ?| ?· ?(?=\d)", "×"),
)
_LAYOUT = _compiled(
    (rf"(?<![{_SYMBOL}{CJK}.)\]])\.(?=\d)", "0."),
    (r"[,;!?]+|:(?!\d)|(?<!\d):|\.(?!\d)|(?<!\d)\.", ";"),
    (r" (?=[\^_)])|(?<=[(\^_]) ", ""),
    (r"[\^_]\(\)", ""),
    (rf"([\^_])\(([+-]?(?:{_NUMBER}|[{LATIN}]+|[{GREEK}]|[{CJK}]+)|[+\-'∥⊥∞°])\)", r"\1\2 "),
    (r" +(?=[ ^_)'])", ""),
    (r"\^°", "°"),
    (r"\^('+)", r"\1"),
    (rf"(?<![{_SYMBOL})\]'])'+", ""),
    (rf"([/√]) ?\( ?({_NUMBER}) ?\)", r"\1\2 "),
    (rf"/ ?\( ?({_ATOM}(?:\^\d+)?) ?\)(?! ?[{_SYMBOL}(_^])", r"/\1"),
    (rf"/\((√(?:\([^()]*\)|[^()]))\)(?! ?[{_SYMBOL}(_^])", r"/\1"),
    (rf"√ ?\( ?({_ATOM}) ?\)(?! ?[{_SYMBOL}(_^'])", r"√\1"),
    (rf"(?<![{_SYMBOL})\]'√^_/])\(([^()+\-;=<>≤≥≈≠]+)\)(?=/)", r"\1"),
    (rf"(?<![{_SYMBOL})\]'√^_/])\(({_NUMBER}/{_NUMBER})\)(?![\^_])", r"\1 "),
    (r"\(\(([^()]*)\)\)", r"(\1)"),
    (rf"(?<![{LATIN}\d]) | (?![{LATIN}\d])", ""),
    (rf"(?<=\d)(?!e-?\d)(?=[{LATIN}])", " "),
    (r";{2,}", ";"),
    (r"^;|;$", ""),
)


def without_thinking(text: str) -> str:
    """The text without think blocks: closed ones, an open one to the end, and all before a bare
    close."""
    text = _THINK_BLOCK.sub("", text)
    text = _THINK_OPEN.sub("", text)
    return _THINK_CLOSE.sub("", text).strip()


@lru_cache(maxsize=4096)
def normal(text: str) -> str:
    """The normal form of a text: one line, "" when nothing with meaning is left.

    Idempotent (for braces nested up to 30 deep). Paragraphs are handled one by one, so that an
    unclosed brace spoils its own paragraph only and text that is appended as a new paragraph
    never changes what stood before it.
    """
    forms = (_paragraph(part) for part in re.split(r"\n[ \t\r]*\n", text))
    return ";".join(form for form in forms if form)


def _paragraph(text: str) -> str:
    for _ in range(_MAX_PASSES):
        before, text = text, _once(text)
        if text == before:
            break
    return text


def _once(text: str) -> str:
    text = _HTML_SCRIPT.sub(lambda m: ("_{" if m[1].lower() == "sub" else "^{") + m[2] + "}", text)
    text = _LINE_MARK.sub("", text).replace("**", "").replace("__", "")
    text = re.sub(r"(?<=\d)(?:\\,|\{,\})(?=\d{3}(?!\d))", "", text)
    text = unified(scripts(text))
    text = linear(_THOUSANDS.sub(lambda m: m[0].replace(",", ""), text))
    for pattern, replacement in _OPERATORS:
        text = pattern.sub(replacement, text)
    text = _POWER_OF_TEN.sub(_power_of_ten, text)
    text = _EXPONENT.sub(lambda m: _decimal(m[1], m[2]), text)
    text = _DECIMAL.sub(lambda m: _decimal(m[0], "0"), text)
    for pattern, replacement in _LAYOUT:
        text = pattern.sub(replacement, text)
    return re.sub(f"[^{GREEK}]+", lambda m: m[0].lower(), text)


def _decimal(mantissa: str, exponent: str) -> str:
    """One spelling for each value: positional from 0.001 up to 999999, else `d.ddde±n`."""
    value = Decimal(mantissa).scaleb(int(exponent)).normalize()
    if not value:
        return "0"
    if -3 <= value.adjusted() <= 5:
        return f"{value:f}"
    digits = "".join(map(str, value.as_tuple().digits))
    return digits[0] + ("." + digits[1:] if digits[1:] else "") + f"e{value.adjusted()}"


def _power_of_ten(match: re.Match[str]) -> str:
    return _decimal(match[1] or "1", match[2] or match[3]) + " "


def contains(part: str, whole: str) -> bool:
    """Whether normal form `part` stands inside normal form `whole`.

    Latin words, numbers and symbols match whole only: `3` is not in `13`, `3.14`, `x^3` or `-3`;
    `E` is not in `Energy`, `E_x` or `E'`. Han characters have no boundaries. Breaks and spaces
    may differ, except between two numbers. An equation is matched as a whole (`E=0` is not in
    `∇·E=0`, nor `W=QU` in `W=QU/2`), and may be reached through a chain (`E=σ/ε_0` is in
    `E=D/ε_0=σ/ε_0`).
    """
    pattern = _pattern(part)
    return pattern is not None and pattern.search(whole) is not None


@lru_cache(maxsize=4096)
def _pattern(part: str) -> re.Pattern[str] | None:
    tokens = re.findall(r"\d+(?:\.\d+)*(?:e-?\d+)?|[^ ;]", part)
    if not tokens:
        return None
    relations = re.findall("[=≈<>≤≥≠∝]", part)
    body, previous = "", ""
    for token in tokens:
        if previous:
            body += "[ ;]" if previous[-1].isdigit() and token[0].isdigit() else "[ ;]?"
        body += re.escape(token)
        if token == "=" and len(relations) == 1 and previous:
            body += rf"(?:(?:(?![a-z] [a-z])[^;={CJK}]){{1,120}}=){{0,8}}"
        previous = token
    return re.compile(_before(part, bool(relations)) + body + _after(part, bool(relations)))


def _before(part: str, equation: bool) -> str:
    first = part[0]
    guard = ""
    if first.isdigit():
        guard = rf"(?<![{LATIN}\d_^])(?<!\d\.)(?<!\de-)(?<![_^(=<>≤≥≈×/·;{CJK}]-)(?<!^-)"
    elif re.match(f"[{LATIN}]", first):
        guard = rf"(?<![{LATIN}\d_^])"
    elif re.match(f"[{GREEK}]", first):
        guard = "(?<![_^])"
    if equation and re.match(f"[{_SYMBOL}]", first):
        guard += rf"(?<![{GREEK}∂∇√·×/+\-^_)'])(?<!\d )"
    return guard


def _after(part: str, equation: bool) -> str:
    guard = ""
    if part[-1].isdigit():
        guard = r"(?![\d_^])(?!\.\d)(?!e-?\d)"
    elif re.search(f"[{LATIN}]$", part):
        guard = rf"(?![{LATIN}\d_^])"
    elif re.search(f"[{GREEK})]$", part):
        guard = "(?![_^])"
    if re.search(rf"(?:^|[^{LATIN}])[{LATIN}{GREEK}]$", part):
        guard += "(?!'(?!s))"
    if equation and re.search(f"[{_SYMBOL})]$", part):
        guard += r"(?![+\-×/·])"
    return guard
