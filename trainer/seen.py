"""Which names were seen before and in which line, in 20 bytes for each slot instead of the names. No torch."""

from __future__ import annotations

from array import array
from hashlib import blake2b

FIRST_SLOTS = 1 << 10
FULL = 2 / 3  # of the slots; then there are twice as many


class Seen:
    """The first line of every name. Open addressing with linear probing over three flat arrays.

    A name stands as 128 bits of its BLAKE2b hash: of a million names two are taken for one with a chance below
    2e-27 (n² / 2^129), so no name has to be kept to be compared.
    """

    def __init__(self) -> None:
        self._names = 0
        self._allot(FIRST_SLOTS)

    def _allot(self, slots: int) -> None:
        self._mask = slots - 1
        self._high, self._low = array("Q", bytes(8 * slots)), array("Q", bytes(8 * slots))
        self._lines = array("I", bytes(4 * slots))

    def first_line(self, name: str, line: int) -> int | None:
        """The line (from 1) in which the name was seen first; None when it is new, and is then kept with `line`."""
        key = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        return self._put(int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big"), line)

    def _put(self, high: int, low: int, line: int) -> int | None:
        slot = low & self._mask
        while found := self._lines[slot]:
            if self._low[slot] == low and self._high[slot] == high:
                return found
            slot = (slot + 1) & self._mask
        self._high[slot], self._low[slot], self._lines[slot] = high, low, line
        self._names += 1
        if self._names > FULL * self._mask:
            self._grow()
        return None

    def _grow(self) -> None:
        before = zip(self._high, self._low, self._lines, strict=True)
        self._names = 0
        self._allot(2 * (self._mask + 1))
        for high, low, line in before:
            if line:
                self._put(high, low, line)
