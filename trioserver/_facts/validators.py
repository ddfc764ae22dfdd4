"""What a field may hold: validators, and converters that leave the complaint to them.

A validator's message names the field, what was expected and what was given, so
that it can be acted on without opening the code. Wrong types are `TypeError`,
wrong values `ValueError`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeAlias

import attrs

Validator: TypeAlias = "Callable[[Any, attrs.Attribute[Any], Any], None]"


def reject(
    kind: type[Exception],
    instance: object,
    field: attrs.Attribute[Any],
    expected: str,
    value: object,
) -> NoReturn:
    """Raise ``kind`` with a message that names the field."""
    if instance is None:
        owner = ""
    else:
        cls = instance if inspect.isclass(instance) else type(instance)
        owner = f"{cls.__name__}."
    raise kind(f"{owner}{field.alias} must be {expected}, not {value!r}")


def seconds(*, zero: bool = False, optional: bool = False) -> Validator:
    """A validator for durations in seconds; ``math.inf`` means no limit."""
    expected = "a number of seconds " + ("of at least 0" if zero else "greater than 0")
    expected += " or None" if optional else " (math.inf for no limit)"

    def check(instance: object, field: attrs.Attribute[Any], value: object) -> None:
        if optional and value is None:
            return
        if kind := _fault_of_seconds(value, zero=zero):
            reject(kind, instance, field, expected, value)

    return check


def check_seconds(name: str, value: object, *, zero: bool = False, optional: bool = False) -> None:
    """Refuse what is not a number of seconds: the argument ``name`` of a method.

    Args:
      zero: whether 0 will do; math.inf always does.
      optional: whether None will do.

    Raises:
      TypeError: it is no number.
      ValueError: it is a wrong number.
    """
    if optional and value is None:
        return
    kind = _fault_of_seconds(value, zero=zero)
    if kind is TypeError:
        alternative = " or None" if optional else ""
        raise TypeError(f"{name} must be a number of seconds{alternative}, not {value!r}")
    if kind is ValueError:
        least = "at least" if zero else "greater than"
        raise ValueError(f"{name} must be {least} 0 seconds, not {value!r}")


def _fault_of_seconds(value: object, *, zero: bool) -> type[Exception] | None:
    """TypeError or ValueError for what is not a number of seconds; None if it is one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return TypeError
    try:
        right = float(value) > 0 or (zero and value == 0)
    except OverflowError:  # an int beyond what a clock can hold
        right = False
    return None if right else ValueError


LARGEST_INT = 2**31 - 1
"""What the system's calls take for an int."""


def count(
    minimum: int, *, most: int | None = None, unit: str = "", optional: bool = False
) -> Validator:
    """A validator for whole numbers of at least ``minimum``, and at most ``most`` if given."""
    span = f"of at least {minimum}" if most is None else f"between {minimum} and {most}"
    expected = f"a whole number {unit}{span}" + (" or None" if optional else "")

    def check(instance: object, field: attrs.Attribute[Any], value: object) -> None:
        if optional and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int):
            reject(TypeError, instance, field, expected, value)
        if value < minimum or (most is not None and value > most):
            reject(ValueError, instance, field, expected, value)

    return check


def instance_of(kind: type, expected: str) -> Validator:
    """A validator for instances of ``kind``."""

    def check(instance: object, field: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, kind):
            reject(TypeError, instance, field, expected, value)

    return check


true_or_false = instance_of(bool, "True or False")


def socket_options(instance: object, field: attrs.Attribute[Any], value: object) -> None:
    """Refuse what is not a sequence of ``(level, name, value)``."""
    expected = "a sequence of (level, name, value), two ints and an int or bytes"
    if not isinstance(value, tuple):
        reject(TypeError, instance, field, expected, value)
    for option in value:
        match option:
            case (int(), int(), int() | bytes()):
                ints = [part for part in option if isinstance(part, int)]
                if not all(-LARGEST_INT - 1 <= part <= LARGEST_INT for part in ints):
                    reject(ValueError, instance, field, f"{expected}, the ints of 32 bits", option)
            case _:
                reject(TypeError, instance, field, expected, option)


def as_tuple(value: Any) -> Any:
    """A tuple of what is iterable; validators refuse the rest by the field's name."""
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return tuple(value)
    return value
