"""The names that a bundle can carry: one grammar for archives and manifests, the same on every Python. No torch.

Nothing here asks the running Python's Unicode tables: they differ between versions, and verdicts must not. What is
invisible is a list of its own; what is equal but for its form is asked of Unicode 3.2, which every Python has.
"""

from __future__ import annotations

import re
from typing import Iterable
from unicodedata import ucd_3_2_0 as unicode_3_2

from trainer.content import RECORD
from trainer.errors import InputError

COMPONENT_BYTES = 255
NAME_BYTES = 1000
DEPTH = 32
TOGETHER = 400_000  # names and their folders, which all are held in memory
SHOWN = 120
AGAIN = "rename the file and build the bundle again"

# Default_Ignorable_Code_Point and Cf of Unicode 15.1, with the separators of lines and paragraphs.
_INVISIBLE = (
    (0x00AD, 0x00AD), (0x034F, 0x034F), (0x0600, 0x0605), (0x061C, 0x061C), (0x06DD, 0x06DD), (0x070F, 0x070F),
    (0x0890, 0x0891), (0x08E2, 0x08E2), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x200B, 0x200F),
    (0x2028, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFFB), (0x110BD, 0x110BD), (0x110CD, 0x110CD), (0x13430, 0x1343F), (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
_NO_CHARACTERS = ((0xFDD0, 0xFDEF), *((plane + 0xFFFE, plane + 0xFFFF) for plane in range(0, 0x110000, 0x10000)))


def _class(*ranges: Iterable[tuple[int, int]]) -> str:
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for part in ranges for first, last in part)


_CONTROL = r"\x00-\x1f\x7f-\x9f"
_REFUSED = re.compile(f"[{_CONTROL}{_class(_INVISIBLE, _NO_CHARACTERS)}]")
_KINDS = (
    (re.compile(f"[{_CONTROL}]"), "the control character"),
    (re.compile(f"[{_class(_INVISIBLE)}]"), "the invisible character"),
    (re.compile(f"[{_class(_NO_CHARACTERS)}]"), "the non-character"),
)
_PLAIN = re.compile(r"[ -&(-\[\]-~]*")  # what a message can hold as it is, between quotes


def shown(raw: bytes | str, marks: bool = True) -> str:
    """A name for a message, in quotes: at most 120 characters, all of which leave the cursor where it is.

    `marks`: combining marks as they are; without, they are escaped, so that Unicode forms look different.
    """
    text = raw.decode("utf-8", "surrogateescape") if isinstance(raw, bytes) else raw
    if len(text) > SHOWN:  # escapes are cut below
        text = f"{text[: SHOWN - 40]}…{text[-35:]}"
    if not _PLAIN.fullmatch(text):
        text = "".join(_escaped(char, marks) for char in text)
    if len(text) > SHOWN - 2:
        text = f"{text[: SHOWN - 40]}…{text[-35:]}"
    return f"'{text}'"


def _escaped(char: str, marks: bool) -> str:
    """A character of a message: itself where every Python knows that it is seen, else what it is written as."""
    if char in "'\\":
        return "\\" + char
    if char == " " or (unicode_3_2.category(char)[0] not in ("CZ" if marks else "CZM") and not _REFUSED.match(char)):
        return char
    code = ord(char)
    code = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code  # a byte that is not UTF-8
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def checked(raw: bytes, where: str, folder: bool = False) -> str:
    """The normal form of a name: below the root, without a leading `./` and, for a folder, without the last `/`.

    The root itself, as a folder, is "". InputError, beginning with `where`, for a name that a bundle cannot carry.
    """
    found = raw[2:] if raw.startswith(b"./") else raw
    if folder:
        found = found[:-1] if found.endswith(b"/") else found
        if raw in (b".", b"./"):
            return ""
    try:
        name = found.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{where}: the name {shown(raw)} is not UTF-8; {AGAIN}") from None
    wrong = _wrong(name, found)
    if wrong:
        raise InputError(f"{where}: the name {shown(raw)} {wrong}; {AGAIN}")
    return name


def _wrong(name: str, raw: bytes) -> str:
    """What keeps a bundle from carrying a name, "" when nothing does."""
    refused = _REFUSED.search(name)
    if refused:
        kind = next(words for found, words in _KINDS if found.match(refused[0]))
        return f"has {kind} U+{ord(refused[0]):04X}"
    if "\\" in name:
        return "has a backslash"
    if not name:
        return "is empty"
    if name.startswith("/"):
        return "is absolute"
    if name.endswith("/"):
        return "ends with a slash, as those of folders may"
    parts = name.split("/")
    for part in ("..", "."):
        if part in parts:
            return f"has the component {part!r}"
    if "" in parts:
        return "has an empty component"
    if len(raw) > NAME_BYTES:
        return f"has {len(raw)} bytes, the most is {NAME_BYTES}"
    if len(parts) > DEPTH:
        return f"has {len(parts)} components, the most is {DEPTH}"
    longest = max(map(len, raw.split(b"/")))
    if longest > COMPONENT_BYTES:
        return f"has a component of {longest} bytes, the most is {COMPONENT_BYTES}"
    if form(parts[0]) == RECORD:
        return f"is reserved for the record of a release, {RECORD}"
    return ""


def form(name: str) -> str:
    """What names share that are equal but for case or Unicode form; characters younger than Unicode 3.2 stay."""
    if name.isascii():
        return name.lower()
    return _decomposed("".join(char.casefold() if _is_known(char) else char for char in _decomposed(name)))


def _is_known(char: str) -> bool:
    return unicode_3_2.category(char) != "Cn"


def _decomposed(name: str) -> str:
    """NFD, of the runs of known characters only: how others are ordered among marks depends on the Python."""
    runs = [""]
    for char in name:
        if _is_known(char):
            runs[-1] += char
        else:
            runs += [char, ""]
    return "".join(str(unicode_3_2.normalize("NFD", run)) for run in runs)


class Together:
    """Names as they come in, which must be able to lie beside each other on any file system."""

    def __init__(self, most: int = TOGETHER) -> None:
        self._most = most
        self._kinds: dict[str, str] = {"": "folder"}  # of the names that came and of the folders they lie in
        self._came: dict[str, str] = {}  # the names that came themselves
        self._forms: dict[str, str] = {}

    def add(self, name: str, where: str, folder: bool = False) -> None:
        """Take one more name in its normal form; InputError, beginning with `where`, when it meets another."""
        kind = "folder" if folder else "file"
        if name in self._came:
            raise InputError(f"{where}: the name {shown(name)} comes twice; build the bundle again")
        self._came[name] = kind
        self._place(name, kind, name, where)
        parent = name.rpartition("/")[0]
        while self._kinds.get(parent) != "folder":
            self._place(parent, "folder", name, where)
            parent = parent.rpartition("/")[0]

    def _place(self, name: str, kind: str, cause: str, where: str) -> None:
        if self._kinds.setdefault(name, kind) != kind:
            raise InputError(
                f"{where}: the name {shown(cause)} makes {shown(name)} a file and a folder at once; "
                "rename one and build the bundle again"
            )
        if len(self._kinds) > self._most + 1:
            raise InputError(f"{where}: more than {self._most} files and folders; build a smaller bundle")
        other = self._forms.setdefault(form(name), name)
        if other != name:
            names = f"the name {shown(name, False)} differs from {shown(other, False)}"
            raise InputError(f"{where}: {names} in case or Unicode form only; rename one and build the bundle again")


def check_together(names: Iterable[str], where: str) -> None:
    """InputError when files with these names cannot lie in one tree on every file system: two are equal, equal but
    for case or Unicode form, or one is a folder of another."""
    together = Together()
    for name in names:
        together.add(name, where)
