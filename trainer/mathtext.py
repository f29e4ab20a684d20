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
import unicodedata
from decimal import Decimal
from functools import lru_cache

GREEK = "\u0370-\u03ff"
CJK = "\u3400-\u9fff"
LATIN = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"  # without × and ÷
_SYMBOL = f"{LATIN}0-9{GREEK}"
_MAX_DEPTH = 30  # deeper nesting is noise from a model in a loop; it must not exhaust the stack
_MAX_PASSES = 12

# LaTeX name and what it is written as, in turn.
_NAMES = """
    alpha α beta β gamma γ delta δ epsilon ε varepsilon ε zeta ζ eta η theta θ
    vartheta θ iota ι kappa κ lambda λ mu μ nu ν xi ξ pi π varpi π rho ρ varrho ρ
    sigma σ varsigma σ tau τ upsilon υ phi φ varphi φ chi χ psi ψ omega ω Gamma Γ
    Delta Δ Theta Θ Lambda Λ Xi Ξ Pi Π Sigma Σ Upsilon Υ Phi Φ Psi Ψ Omega Ω times ×
    cdot · bullet · ast * div / nabla ∇ partial ∂ oint ∮ int ∫ iint ∫∫ iiint ∫∫∫
    oiint ∮∮ sum ∑ prod ∏ infty ∞ pm ± mp ∓ leq ≤ le ≤ leqslant ≤ geq ≥ ge ≥ geqslant ≥
    ll ≪ gg ≫ neq ≠ ne ≠ approx ≈ sim ~ simeq ≃ cong ≅ equiv ≡ propto ∝ to →
    rightarrow → longrightarrow → leftarrow ← gets ← Rightarrow ⇒ Longrightarrow ⇒
    implies ⇒ Leftrightarrow ⇔ iff ⇔ leftrightarrow ↔ perp ⊥ parallel ∥ Vert ∥ lVert ∥
    rVert ∥ vert | lvert | rvert | mid | in ∈ notin ∉ subset ⊂ cup ∪ cap ∩ forall ∀
    exists ∃ angle ∠ degree ° circ ° prime ' hbar ħ ell l Re Re Im Im therefore ∴
    because ∵ colon : slash / lbrace ( rbrace ) langle ( rangle ) ldots ; cdots ; dots ;
    vdots ; quad ; qquad ; newline ; triangle Δ
"""
_COMMANDS = dict(zip(_NAMES.split()[::2], _NAMES.split()[1::2], strict=True))
# Switches and spacing without meaning of their own; their argument, if any, is read as an
# ordinary group.
_SILENT_NAMES = """
    text textbf textit textrm textsf mathrm mathbf mathit mathsf mathcal mathbb mathscr
    boldsymbol bm pmb vec hat widehat overrightarrow operatorname rm bf it left right big
    Big bigg Bigg bigl bigr Bigl Bigr displaystyle textstyle limits nolimits mathop mbox
    hbox boxed underline ensuremath
"""
_SILENT = frozenset(_SILENT_NAMES.split())
_DROPPED_WITH_ARGUMENT = frozenset({"tag", "label", "begin", "end", "hspace", "vspace", "color"})
_ESCAPED = {
    "\\": ";",
    "{": "(",
    "}": ")",
    "|": "∥",
    "_": "_",
    "(": " ",
    ")": " ",
    "[": ";",
    "]": ";",
}

_CHARACTERS = {
    **dict.fromkeys("，、；。！？—―…⋯‥；", ";"),
    **dict.fromkeys("−–‒‐‑﹣－", "-"),
    **dict.fromkeys('“”„‟"«»「」『』《》〈〉‘`＂', ""),
    **dict.fromkeys("’′´＇", "'"),
    **dict.fromkeys("∙⋅•‧・·", "·"),
    **dict.fromkeys("✕✖⨯⨉", "×"),
    **dict.fromkeys("∕⁄÷", "/"),
    **dict.fromkeys("⟶➔➝", "→"),
    **dict.fromkeys("≦⩽", "≤"),
    **dict.fromkeys("≧⩾", "≥"),
    **dict.fromkeys("º˚", "°"),
    **{"∗": "*", "∶": ":", "∣": "|", "‖": "∥", "∆": "Δ", "∊": "∈", "⟂": "⊥", "⟹": "⇒", "∼": "~"},
}
_TRANSLATION = {ord(key): value for key, value in _CHARACTERS.items()}

_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\\|\s+|.", re.DOTALL)
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
    text = _unicode(_scripts(text))
    text = _Reader(_THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)).group(0)
    for pattern, replacement in _OPERATORS:
        text = pattern.sub(replacement, text)
    text = _POWER_OF_TEN.sub(_power_of_ten, text)
    text = _EXPONENT.sub(lambda m: _decimal(m[1], m[2]), text)
    text = _DECIMAL.sub(lambda m: _decimal(m[0], "0"), text)
    for pattern, replacement in _LAYOUT:
        text = pattern.sub(replacement, text)
    return re.sub(f"[^{GREEK}]+", lambda m: m[0].lower(), text)


def _scripts(text: str) -> str:
    """Superscript, subscript, squared, circled and fraction characters, which NFKC would flatten
    (㎡ -> m2)."""
    out, run = [], ""
    for char in text.replace("º", "°"):
        tag, _, codes = unicodedata.decomposition(char).partition(" ")
        mark = {"<super>": "^", "<sub>": "_"}.get(tag, "")
        if run and mark != run:
            out.append("}")
        if mark and mark != run:
            out.append(mark + "{")
        run = mark
        if tag == "<square>":
            out.append(_scripts("".join(chr(int(code, 16)) for code in codes.split())))
        elif tag in ("<circle>", "<fraction>"):
            out.append(f" {unicodedata.normalize('NFKC', char)} ")
        else:
            out.append(unicodedata.normalize("NFKC", char) if mark else char)
    return "".join(out) + ("}" if run else "")


def _unicode(text: str) -> str:
    """NFKC, one character for each punctuation mark and operator; arrows and hats over letters
    dropped."""
    text = unicodedata.normalize("NFKC", text.translate(_TRANSLATION)).translate(_TRANSLATION)
    plain = re.sub("[\u0302\u20d0-\u20dc\u20e1\u20e5-\u20f0]", "", unicodedata.normalize("NFD", text))
    kept = (c for c in plain if c in "\n\t" or unicodedata.category(c) not in ("Cf", "Cc", "Co"))
    return unicodedata.normalize("NFC", "".join(kept))


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


class _Reader:
    """Reads LaTeX within text into linear text: one pass, bounded depth, never an error."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = _TOKEN.findall(text)
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def group(self, depth: int) -> str:
        """Up to the closing brace of this group (depth 0: to the end; stray braces vanish)."""
        out: list[str] = []
        while self.at < len(self.tokens):
            if self.peek() == "}":
                self.at += 1
                if depth:
                    break
                continue
            out.append(self.item(depth, "".join(out[-1:])))
        return "".join(out)

    def item(self, depth: int, before: str = "") -> str:
        token = self.peek()
        self.at += 1
        if token == "{":
            return self.group(depth + 1) if depth < _MAX_DEPTH else " "
        if token in ("^", "_"):
            return self.script(token, depth)
        if len(token) > 1 and token[0] == "\\":
            return self.command(token[1:], depth, before)
        if token.isspace():
            return " " if depth else token
        return token

    def argument(self, depth: int, keep_space: bool = False) -> str:
        while self.peek().isspace():
            self.at += 1
        if depth >= _MAX_DEPTH or self.peek() in ("", "}"):
            return ""
        text = self.item(depth + 1)
        return text if keep_space else text.strip()

    def script(self, mark: str, depth: int) -> str:
        """`^` or `_` and what it carries, in brackets; a bare run (`_in`, `^-9`) is taken
        whole."""
        while self.peek() == " ":
            self.at += 1
        head = self.peek()
        if head == "(":
            return mark
        if head == "{" or head[:1] == "\\":
            return f"{mark}({self.argument(depth)}) "
        sign = head if head and head in "+-" else ""
        self.at += len(sign)
        run = re.match(
            rf"\d+(?:\.\d+)?|[{LATIN}]+|[{GREEK}{CJK}]|",
            "".join(self.tokens[self.at : self.at + 40]),
        )
        content = run[0] if run else ""
        self.at += len(content)
        return f"{mark}({sign}{content}) " if sign or content else ""

    def command(self, name: str, depth: int, before: str) -> str:
        if name in ("frac", "dfrac", "tfrac", "cfrac"):
            return self.fraction(depth, before)
        if name == "sqrt":
            index = self.optional()
            root = {"": "√", "2": "√", "3": "∛", "4": "∜"}.get(index, f"√[{index}]")
            return f"{root}({self.argument(depth)})"
        if name in _DROPPED_WITH_ARGUMENT:
            self.argument(depth)
            return ";" if name in ("begin", "end") else " "
        if name == "not" and self.peek() == "=":
            self.at += 1
            return "≠"
        if name in _SILENT:
            return self.argument(depth, keep_space=True)
        if name in _COMMANDS:
            return f" {_COMMANDS[name]} " if name[0].isalpha() else _COMMANDS[name]
        if name[0].isalpha():
            return f" {name} "
        return _ESCAPED.get(name, " " if name in ",;:! " or name.isspace() else name)

    def fraction(self, depth: int, before: str) -> str:
        """a/(b); the numerator is bracketed when it is a sum, the whole when it is itself
        divided."""
        above, below = self.argument(depth), self.argument(depth)
        if re.search(r"[+\-=<>≤≥≈≠;,±∓]", re.sub(r"\([^()]*\)", "", above)):
            above = f"({above})"
        text = f" {above}/({below})"
        return f"({text})" if before.rstrip()[-1:] in ("/", "√") else text

    def optional(self) -> str:
        """The index of a root, `[3]`, or nothing."""
        inside = re.match(r"\s*\[(\w{1,3})\]", "".join(self.tokens[self.at : self.at + 6]))
        self.at += len(inside[0]) if inside else 0
        return inside[1] if inside else ""


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
