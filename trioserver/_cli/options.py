"""What an option is: a word that is typed, or a variable in the environment.

``--grace 5`` can come from ``TRIOSERVER_GRACE``, too. What is typed wins. A wrong value is one
line that names where it came from, and says what was expected.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import attrs

PREFIX = "TRIOSERVER_"

_SWITCH = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off", ""), False),
}


class Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong, and takes no abbreviations.

    One that is right today could mean two options tomorrow.
    """

    def __init__(self, **more: Any) -> None:
        super().__init__(allow_abbrev=False, **more)

    def error(self, message: str) -> NoReturn:
        """Say it, and end with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


@attrs.frozen
class Option:
    """One option.

    Args:
      flag: as it is typed, ``--grace``.
      help: what it does.
      convert: makes the value of a text, or raises `argparse.ArgumentTypeError`.
      metavar: what its value is called.
      short: the same in one letter.
      repeats: whether it can be given several times; in the environment, words.
      is_switch: whether it has no value.
      choices: the values that it may have.
    """

    flag: str
    help: str
    convert: Callable[[str], Any] = str
    metavar: str | None = None
    short: str | None = None
    repeats: bool = False
    is_switch: bool = False
    choices: Sequence[str] | None = None

    @property
    def name(self) -> str:
        """The name of its value."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def variable(self) -> str:
        """The variable that it comes from when it is not typed."""
        return PREFIX + self.name.upper()

    def add_to(self, parser: Any) -> None:
        """Have a parser know it."""
        flags = [self.flag] if self.short is None else [self.short, self.flag]
        more: dict[str, Any] = {"default": None, "help": f"{self.help} [{self.variable}]"}
        if self.is_switch:
            more["action"] = "store_true"
        else:
            more |= {"type": self.convert, "metavar": self.metavar, "choices": self.choices}
            if self.repeats:
                more["action"] = "append"
        parser.add_argument(*flags, **more)

    def from_environment(self, text: str) -> Any:
        """Its value, of what is in the environment.

        Raises:
          argparse.ArgumentTypeError: it makes no sense.
        """
        if self.is_switch:
            if text.lower() not in _SWITCH:
                raise argparse.ArgumentTypeError(f"1 or 0 was expected, not {text!r}")
            return _SWITCH[text.lower()]
        found = [self.convert(word) for word in (text.split() if self.repeats else [text])]
        for value in found:
            if self.choices is not None and value not in self.choices:
                one_of = ", ".join(self.choices)
                raise argparse.ArgumentTypeError(f"one of {one_of} was expected, not {value!r}")
        return found if self.repeats else found[0]


def unknown_variables(options: Iterable[Option]) -> Sequence[str]:
    """The variables in the environment that look like one of these options, and are none."""
    known = {option.variable for option in options}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)


def complete(parser: Parser, options: Sequence[Option], typed: argparse.Namespace) -> None:
    """Put in what the environment says, where nothing was typed."""
    for option in options:
        text = os.environ.get(option.variable)
        if text is None or getattr(typed, option.name) is not None:
            continue
        try:
            setattr(typed, option.name, option.from_environment(text))
        except argparse.ArgumentTypeError as error:
            parser.error(f"{option.variable}: {error}")
