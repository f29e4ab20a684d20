"""LaTeX within text, read into linear text: `\\frac{a}{bc}` becomes `a/(bc)`, `\\varepsilon_{0}` `ε_(0)`."""

from __future__ import annotations

import re

from trainer.characters import CJK, GREEK, LATIN

_MAX_DEPTH = 30  # deeper nesting is noise from a model in a loop; it must not exhaust the stack

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
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\\|\s+|.", re.DOTALL)


def linear(text: str) -> str:
    """A text with its LaTeX in linear notation; whatever LaTeX is broken stays readable, nothing is raised."""
    return _Reader(text).group(0)


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
