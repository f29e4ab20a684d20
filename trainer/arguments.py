"""Arguments of a command line: what is wrong is an error in one sentence. Python 3.8, no torch."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable
from typing import NoReturn

from trainer.errors import InputError


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean x?` for a misspelt name, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


class Parser(argparse.ArgumentParser):
    """Wrong arguments are an input error like others: one sentence with the likeliest right word, exit code 2."""

    program = "python -m trainer"  # what a user types; a bundle's own program is another

    def error(self, message: str) -> NoReturn:
        where = self.prog.partition(" ")[2]
        usage = f"see `{self.program} {where + ' ' if where else ''}--help`"
        if match := re.match(r"argument [A-Z]+: invalid choice: '(.*?)' \(choose from (.*)\)", message):
            names = re.findall(r"[a-z]+", match[2])
            hint = suggestion(match[1], names) or f"; choose from {', '.join(names)}"
            raise InputError(f"there is no command {match[1]!r}{hint}")
        if match := re.match(r"unrecognized arguments: (--[^ =]+)", message):
            raise InputError(f"there is no option {match[1]}{self._nearest_option(match[1])}; {usage}")
        raise InputError(f"{message}; {usage}")

    def _nearest_option(self, option: str) -> str:
        return suggestion(option, sorted(_options(self))).rstrip("?")  # a pointer to the help follows


def _options(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a parser and of the commands below it."""
    options = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            options.update(name for below in action.choices.values() for name in _options(below))
    return options
