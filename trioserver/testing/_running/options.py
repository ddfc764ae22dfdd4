"""What may be given for the options of the tools: if not that, an error in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .._faults.faults import Faults
from .._faults.kinds import Fault


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse what is not one of the choices.

    Raises:
      ValueError: it is not.
    """
    if value not in choices:
        names = ", ".join(map(repr, choices[:-1]))
        raise ValueError(f"{name} must be {names} or {choices[-1]!r}, not {value!r}")


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False.

    Raises:
      TypeError: it is not.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")


def faults_from(given: Faults | Iterable[Fault] | None) -> Faults:
    """The faults that a network has to begin with; none, of None.

    Raises:
      TypeError: it is neither `Faults` nor several faults.
    """
    if isinstance(given, Faults):
        return given
    if given is None:
        return Faults()
    if not isinstance(given, Iterable):
        raise TypeError(f"faults must be Faults or a list of faults, [...], not {given!r}")
    return Faults(*given)
