"""One character for each meaning: Unicode's variants of letters, scripts, punctuation and operators."""

from __future__ import annotations

import re
import unicodedata

GREEK = "\u0370-\u03ff"
CJK = "\u3400-\u9fff"
LATIN = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"  # without × and ÷

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


def scripts(text: str) -> str:
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
            out.append(scripts("".join(chr(int(code, 16)) for code in codes.split())))
        elif tag in ("<circle>", "<fraction>"):
            out.append(f" {unicodedata.normalize('NFKC', char)} ")
        else:
            out.append(unicodedata.normalize("NFKC", char) if mark else char)
    return "".join(out) + ("}" if run else "")


def unified(text: str) -> str:
    """NFKC, one character for each punctuation mark and operator; arrows and hats over letters
    dropped."""
    text = unicodedata.normalize("NFKC", text.translate(_TRANSLATION)).translate(_TRANSLATION)
    plain = re.sub("[\u0302\u20d0-\u20dc\u20e1\u20e5-\u20f0]", "", unicodedata.normalize("NFD", text))
    kept = (c for c in plain if c in "\n\t" or unicodedata.category(c) not in ("Cf", "Cc", "Co"))
    return unicodedata.normalize("NFC", "".join(kept))
