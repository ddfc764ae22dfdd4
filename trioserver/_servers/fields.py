"""How a server class comes to its fields: attrs, without users having to say so.

Two classic idioms go on working. ``request_queue_size = 100`` in a class body,
or in a plain mix-in, overrides a default; and a subclass may have an
``__init__`` of its own. So every subclass is made an attrs class when it is
made, values that bear a field's name become its default and are validated at
once, and ``__init__`` is an ordinary method that calls the generated one.
"""

from __future__ import annotations

import copy
import inspect
import socketserver
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self, cast, dataclass_transform

import attrs

from .._engine.peers import Peers
from .._engine.run import Run
from .._engine.stop_request import StopRequest
from .._facts.callables import has_yield, is_async_callable
from .._facts.config import Timeouts
from .._facts.events import ShutdownReport
from .._sockets.left_sockets import LeftSocket
from .field_names import arguments_of, by_name, check_known, check_names, fields_of
from .handlers import Handler

_LIBRARY = __name__.partition(".")[0]


@dataclass_transform(kw_only_default=True, field_specifiers=(attrs.field,))
class Configured:
    """The field-less root of all servers.

    It is apart from `BaseServer` because `dataclass_transform` hides the fields
    of the class that carries it from type checkers.
    """

    # What the classes in between need of the fields, which come later.
    RequestHandlerClass: Handler
    timeouts: Timeouts

    # What is not configuration: the run, while there is one, and what outlives
    # it. Annotated here, where it does not become a field.
    _run: Run | None = None
    _report: ShutdownReport | None = None
    _stop: StopRequest | None = None
    _left: Sequence[LeftSocket] = ()  # for the next run, by an earlier program
    _peers: Peers | None = None  # other processes that serve the same sockets
    _is_in_worker: bool = False  # whether there are any
    _is_built: bool = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        # The library's own classes are decorated in their source, because
        # mypy's attrs.evolve does not know dataclass_transform.
        if not is_ours(cls):
            _check_bases(cls)
            _check_colours(cls)
            make_fields(cls)

    if not TYPE_CHECKING:  # checkers take the signature from the fields

        def __init__(self, *arguments: Any, **given: Any) -> None:
            given = by_name(type(self), arguments, given)
            # What a subclass has assigned before it calls this, as socketserver lets one.
            assigned = self._take_assigned()
            given = {field.alias: value for field, value in assigned if field.init} | given
            check_names(type(self), given)
            self._is_built = True
            self.__attrs_init__(**given)
            for field, value in assigned:
                if not field.init:
                    object.__setattr__(self, field.name, _valid(self, field, value))

    def _take_assigned(self) -> list[tuple[attrs.Attribute[Any], Any]]:
        """The fields that have a value, with it; none has one any more."""
        if self._run is not None:
            raise RuntimeError(f"this {type(self).__name__} is bound: it cannot be built again")
        fields = [field for field in fields_of(type(self)).values() if field.name in vars(self)]
        return [(field, vars(self).pop(field.name)) for field in fields]

    def __setattr__(self, name: str, value: Any) -> None:
        field = fields_of(type(self)).get(name)
        # Before it is built, all are converted and validated together, by the generated
        # __init__; and so is what that assigns first.
        if field is not None and self._is_built and name in vars(self):
            if self._run is not None:
                raise RuntimeError(
                    f"{field.alias} cannot be assigned while the server is bound:"
                    " close it first, or evolve() a copy"
                )
            value = _valid(self, field, value)
        object.__setattr__(self, name, value)

    def _bound_run(self) -> Run:
        """The run, of a server that is bound."""
        if self._run is None:
            raise RuntimeError(f"this {type(self).__name__} is not bound: use `async with server:`")
        return self._run

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        for name in ("_run", "_report", "_stop", "_left", "_peers", "_is_built"):
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _is_built=True)

    def __repr__(self) -> str:
        shown = []
        for field in fields_of(type(self)).values():
            if field.repr:
                show = repr if field.repr is True else field.repr
                shown.append(f"{field.alias}={show(getattr(self, field.name))}")
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def evolve(self, **changes: Any) -> Self:
        """An unbound copy with other values for some fields; attributes of your own come along.

        Raises:
          TypeError: there is no such field; or as building one does.
          ValueError: as building one does.
        """
        fields = arguments_of(type(self))
        check_known(type(self), changes)
        twin = copy.copy(self)
        for alias, value in changes.items():
            field = fields[alias]
            vars(twin)[field.name] = attrs.setters.convert(twin, cast("Any", field), value)
        attrs.validate(cast("Any", twin))  # all of them, now that they are all there
        return twin


# Where a class comes to them ----------------------------------------------------------


def _with_overrides(cls: type, fields: list[attrs.Attribute[Any]]) -> list[attrs.Attribute[Any]]:
    """The fields of ``cls``, with what class bodies say as their defaults."""
    return [_overridden(cls, _like_inherited(cls, field)) for field in fields]


# Also for classes with more than one of our bases: seen in their source, mypy's attrs
# plugin would give each base an __attrs_init__ that is incompatible with the others.
make_fields = attrs.define(
    init=False,
    repr=False,
    eq=False,
    slots=False,
    kw_only=True,
    on_setattr=attrs.setters.NO_OP,
    field_transformer=_with_overrides,
)


def _like_inherited(cls: type, field: attrs.Attribute[Any]) -> attrs.Attribute[Any]:
    """A field that only restates an inherited one keeps all but the default from it."""
    if field.name not in inspect.get_annotations(cls) or field.validator is not None:
        return field
    for base in filter(attrs.has, cls.__mro__[1:]):
        known = fields_of(base).get(field.name)
        if known is not None:
            is_factory = isinstance(field.default, attrs.Factory)  # type: ignore[arg-type]
            if not is_factory and field.default is not attrs.NOTHING:
                _valid(None, known, field.default)
            as_own: dict[str, Any] = {"default": field.default, "inherited": False}
            return known.evolve(**as_own)
    return field


def _overridden(cls: type, field: attrs.Attribute[Any]) -> attrs.Attribute[Any]:
    """The field, with the value that some class body before its definition gives its name."""
    for base in cls.__mro__:
        defines_fields = base is cls or "__attrs_attrs__" in vars(base)
        if defines_fields and field.name in inspect.get_annotations(base):
            return field
        for name in {field.name, field.alias or field.name} & vars(base).keys():
            value = vars(base)[name]
            if name != field.name:
                raise TypeError(
                    f"{cls.__name__}.{name} cannot be a class attribute: pass it, or have"
                    " an __init__ that does"
                )
            if isinstance(value, type(attrs.field())):
                raise TypeError(f"{cls.__name__}.{name} is a field: it needs an annotation")
            _valid(cls, field, value)
            return field.evolve(default=value)
    return field


def _valid(owner: object, field: attrs.Attribute[Any], value: Any) -> Any:
    """``value`` as the field holds it, or the validator's exception.

    Args:
      owner: the server; or the class whose default it is to be.
    """
    value = attrs.setters.convert(owner, cast("Any", field), value)
    if field.validator is not None:
        field.validator(owner, field, value)
    return value


def _check_bases(cls: type) -> None:
    """Refuse bases that do not go together, which would have an effect that nobody expects."""
    for base in cls.__mro__:
        if base.__module__ == socketserver.__name__:
            raise TypeError(
                f"{cls.__name__} derives from socketserver.{base.__name__}, which does not go"
                f" with trioserver's classes: use trioserver.{base.__name__}"
            )
    modes = {vars(base).get("_mode") for base in cls.__mro__}
    if {"thread", "process"} <= modes:
        raise TypeError(
            f"{cls.__name__} derives from both ThreadingMixIn and ProcessMixIn (or ForkingMixIn):"
            " a handler runs in a thread or in a worker process, so leave one of them out"
        )


def _check_colours(cls: type) -> None:
    """Refuse a method that is plain where the library awaits it, or the other way round."""
    for base in filter(is_ours, cls.__mro__):
        for name, original in vars(base).items():
            mine = getattr(cls, name)
            if name.startswith("_") or not inspect.isfunction(original) or mine is original:
                continue
            if is_async_callable(original) and not is_async_callable(mine):
                why = "what may wait is async"
                raise TypeError(
                    f"{cls.__name__}.{name} must be an `async def`{_without_yield(mine)}: {why}"
                )
            is_plain = callable(mine) and not is_async_callable(mine) and not has_yield(mine)
            if not is_async_callable(original) and not is_plain:
                why = "it must not wait"
                raise TypeError(
                    f"{cls.__name__}.{name} must be a plain `def`{_without_yield(mine)}: {why}"
                )


def _without_yield(mine: object) -> str:
    return " without a `yield`" if has_yield(mine) else ""


def is_ours(cls: type) -> bool:
    """Whether the library defines a class, not a program."""
    return cls.__module__.partition(".")[0] == _LIBRARY
