"""How a server class comes to its fields, in every way that classic code and attrs know."""

from __future__ import annotations

import abc
import copy
import gc
import http.server
import pickle
import socketserver
import weakref
from typing import Any, ClassVar, Generic, TypeVar

import attrs
import pytest
import trio
from support import Upper, Witness, hold

import trioserver
from trioserver import Limits, TCPServer, ThreadingMixIn, UnixStreamServer
from trioserver.testing import MemoryServer

ADDRESS = ("localhost", 0)
MEMORY = ("memory", 1)


class Notes:
    """A plain mix-in that overrides a default and has something of its own."""

    request_queue_size = 7
    note = "mixed in"


class Sized(TCPServer):
    """Overrides a default, without an annotation."""

    request_queue_size = 100


class Restated(TCPServer):
    """Overrides a default, with an annotation."""

    request_queue_size: int | None = 100


class Greeting(TCPServer):
    """Has fields of its own."""

    greeting: str = "hello"
    names: list[str] = attrs.field(factory=list)
    count: int = attrs.field(kw_only=True)


def size_of(kind: type[TCPServer], **fields: Any) -> int | None:
    """The field that most of these tests are about."""
    return kind(ADDRESS, Upper, **fields).request_queue_size


def new(name: str, *bases: type, **body: Any) -> Any:
    """A class, made here and now."""
    return type(name, bases or (TCPServer,), {"__module__": __name__, **body})


def plain_handler(request: Any, client_address: Any, server: Any) -> None:
    """A handler for threads."""


def configuration(server: trioserver.BaseServer) -> dict[str, Any]:
    """All fields of a server, by name."""
    return {field.name: getattr(server, field.name) for field in attrs.fields(type(server))}


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "evolve": lambda server: server.evolve(),
    "attrs.evolve": attrs.evolve,
    **{
        f"pickle {protocol}": lambda server, protocol=protocol: pickle.loads(  # noqa: S301
            pickle.dumps(server, protocol)
        )
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


# Overriding a default -----------------------------------------------------------


@pytest.mark.parametrize("kind", [Sized, Restated])
def test_override_is_the_default(kind: type[TCPServer]) -> None:
    """A value in a class body is the default of its field; an argument still wins."""
    assert size_of(kind) == 100
    assert size_of(kind, request_queue_size=5) == 5
    assert size_of(TCPServer) is None


@pytest.mark.parametrize("kind", [Sized, Restated])
def test_override_is_inherited(kind: type[TCPServer]) -> None:
    """Subclasses keep it, however far down, and can override it again."""
    child = new("Child", kind)
    grandchild = new("Grandchild", child)
    assert size_of(child) == size_of(grandchild) == 100
    assert size_of(new("Other", grandchild, request_queue_size=3)) == 3
    assert size_of(grandchild) == 100


def test_override_with_an_annotation_of_a_distant_field_is_inherited() -> None:
    """The same for a field that a base of the base defines."""

    class Patient(TCPServer):
        timeout: float | None = 5

    assert Patient(ADDRESS, Upper).timeout == 5
    assert new("Child", Patient)(ADDRESS, Upper).timeout == 5


def test_override_in_a_plain_mix_in() -> None:
    """A mix-in that is no server can override, too, whether it says a type or not."""

    class Annotated:
        request_queue_size: int = 8

    assert size_of(new("Server", Notes, TCPServer)) == 7
    assert size_of(new("Server", Annotated, TCPServer)) == 8


def test_override_in_a_base_of_a_mix_in() -> None:
    """The whole MRO is searched."""
    assert size_of(new("Server", new("More", Notes), TCPServer)) == 7


def test_override_follows_the_method_resolution_order() -> None:
    """What comes first in the MRO holds, as for every attribute."""
    assert size_of(new("First", Notes, Sized)) == 7
    assert size_of(new("First", Notes, Restated)) == 7
    assert size_of(new("Own", Notes, Sized, request_queue_size=9)) == 9
    assert size_of(new("Left", new("A", Sized), new("B", Restated, request_queue_size=1))) == 100
    assert size_of(new("Right", new("B", Restated, request_queue_size=1), new("A", Sized))) == 1


def test_override_after_the_definition_is_none() -> None:
    """A mix-in that comes after the class which defines a field does not override it."""
    assert size_of(new("Last", TCPServer, Notes)) is None


def test_override_reaches_diamonds() -> None:
    """Two subclasses of one server, put together, keep the override of either."""

    class Quick(TCPServer):
        timeout = 1

    both = new("Both", Sized, Quick)(ADDRESS, Upper)
    assert (both.request_queue_size, both.timeout) == (100, 1)


@pytest.mark.parametrize("kind", [Limits(requests=5), None])
def test_override_of_a_field_with_a_factory(kind: Limits | None) -> None:
    """A value, or a factory of one's own, takes the place of a factory."""
    if kind is not None:
        assert new("Small", limits=kind)(ADDRESS, Upper).limits is kind
        return

    class Small(TCPServer):
        limits: Limits = attrs.field(factory=lambda: Limits(requests=5))

    assert Small(ADDRESS, Upper).limits == Limits(requests=5)
    assert new("Child", Small)(ADDRESS, Upper).limits == Limits(requests=5)


def test_override_is_converted() -> None:
    """A default goes through the field's converter, like a value that is given."""
    witness = Witness()
    assert new("Watched", observers=[witness])(ADDRESS, Upper).observers == (witness,)


def test_override_of_the_handler() -> None:
    """A class can bring its handler along, and a function stays a function."""
    assert new("Upper", RequestHandlerClass=Upper)(ADDRESS).RequestHandlerClass is Upper
    assert new("Hold", RequestHandlerClass=hold)(ADDRESS).RequestHandlerClass is hold


def test_override_of_the_address() -> None:
    """A class-level address would hide the bound one, and is refused."""
    with pytest.raises(TypeError, match=r"There\.server_address cannot be a class attribute"):
        new("There", server_address=("localhost", 80))
    with pytest.raises(TypeError, match="server_address"):
        new("Server", new("There", object, server_address=("localhost", 80)), TCPServer)


@pytest.mark.parametrize("annotation", [{}, {"request_queue_size": "int | None"}])
@pytest.mark.parametrize(("value", "kind"), [(-1, ValueError), ("5", TypeError)])
def test_override_is_validated_when_the_class_is_made(
    annotation: dict[str, str], value: Any, kind: type[Exception]
) -> None:
    """A wrong default is told of at once, by the field's name."""
    with pytest.raises(kind, match="request_queue_size must be a whole number"):
        new("Wrong", request_queue_size=value, __annotations__=annotation)


def test_override_in_a_mix_in_is_validated_when_the_class_is_made() -> None:
    """The mix-in knows nothing of fields; the server that it is mixed into does."""
    with pytest.raises(ValueError, match="request_queue_size must be"):
        new("Server", new("Wrong", object, request_queue_size=-1), TCPServer)


def test_override_with_a_validator_of_ones_own() -> None:
    """A restated field may bring its own validator, which then counts alone."""

    class Even(TCPServer):
        request_queue_size: int | None = attrs.field(default=2)

        @request_queue_size.validator
        def _even(self, field: Any, value: int) -> None:
            if value % 2:
                raise ValueError("odd")

    assert size_of(Even) == 2
    with pytest.raises(ValueError, match="odd"):
        size_of(Even, request_queue_size=3)


def test_override_with_a_field_without_annotation() -> None:
    """``attrs.field()`` without an annotation is a mistake, and says what is missing."""
    with pytest.raises(TypeError, match="request_queue_size is a field: it needs an annotation"):
        new("Wrong", request_queue_size=attrs.field(default=7))


def test_override_of_a_name_that_is_no_field() -> None:
    """Other names stay what they are: plain class attributes."""
    kind = new("Server", Notes, TCPServer)
    assert kind(ADDRESS, Upper).note == "mixed in"
    assert "note" not in {field.name for field in attrs.fields(kind)}


def test_class_constants_stay() -> None:
    """A `ClassVar` is no field."""

    class Counted(TCPServer):
        made: ClassVar[int] = 0

    assert "made" not in {field.name for field in attrs.fields(Counted)}
    with pytest.raises(TypeError, match="made"):
        Counted(ADDRESS, Upper, made=1)


def test_override_with_typing_and_abstract_bases() -> None:
    """Generic and abstract base classes do not get in the way."""
    thing = TypeVar("thing")

    class Typed(TCPServer, Generic[thing]):
        request_queue_size = 100

    class Abstract(TCPServer, abc.ABC):
        request_queue_size = 100

        @abc.abstractmethod
        async def verify_request(self, request: Any, client_address: Any) -> bool: ...

    assert size_of(Typed[int]) == 100
    assert size_of(new("Concrete", Abstract, verify_request=coroutine)) == 100
    with pytest.raises(TypeError, match="abstract"):
        size_of(Abstract)


# New fields ----------------------------------------------------------------------


def test_new_fields() -> None:
    """An annotated attribute is a keyword argument, without any decorator."""
    server = Greeting(ADDRESS, Upper, count=3)
    assert (server.greeting, server.names, server.count) == ("hello", [], 3)
    assert Greeting(ADDRESS, Upper, count=1, greeting="hi").greeting == "hi"


def test_new_fields_have_values_of_their_own() -> None:
    """A factory is called for each server."""
    one, other = (Greeting(ADDRESS, Upper, count=1) for _ in range(2))
    assert one.names is not other.names


def test_new_field_without_default_is_needed() -> None:
    """A field without a default must be given."""
    with pytest.raises(TypeError, match="count"):
        Greeting(ADDRESS, Upper)


def test_new_fields_are_keywords_only() -> None:
    """There are two positional arguments, as ever."""
    with pytest.raises(TypeError, match="two positional arguments"):
        Greeting(ADDRESS, Upper, "hi", count=1)


def test_new_field_is_inherited_and_overridden() -> None:
    """A subclass has it, too, and can override its default in either way."""
    child = new("Child", Greeting, greeting="hi", count=2)
    assert child(ADDRESS, Upper).greeting == "hi"
    assert child(ADDRESS, Upper).count == 2
    assert new("Grandchild", child)(ADDRESS, Upper).greeting == "hi"


def test_new_field_is_converted_once() -> None:
    """A converter sees each value once, when building and when assigning."""

    class Doubled(TCPServer):
        size: int = attrs.field(default=1, converter=lambda value: value * 2)

    server = Doubled(ADDRESS, Upper)
    assert server.size == 2
    server.size = 3
    assert server.size == 6
    assert server.evolve().size == 6
    assert server.evolve(size=1).size == 2


def test_new_field_with_a_converter_that_takes_the_server() -> None:
    """`attrs.Converter` works as anywhere, when building, assigning and evolving."""

    def named(value: str, server: Any) -> str:
        return f"{value} of {type(server).__name__}"

    class Named(TCPServer):
        title: str = attrs.field(default="x", converter=attrs.Converter(named, takes_self=True))

    server = Named(ADDRESS, Upper)
    assert server.title == "x of Named"
    server.title = "y"
    assert server.title == "y of Named"
    assert server.evolve(title="z").title == "z of Named"


class Range(TCPServer):
    """Its fields have something to do with each other."""

    low: int = attrs.field(default=1)
    high: int = attrs.field(default=2)

    @low.validator
    def _ordered(self, field: Any, value: int) -> None:
        if value > self.high:
            raise ValueError("low must not be above high")


def test_new_field_is_validated_when_all_are_set() -> None:
    """A validator sees the other fields, as attrs promises."""
    assert Range(ADDRESS, Upper, low=3, high=4).low == 3
    with pytest.raises(ValueError, match="above high"):
        Range(ADDRESS, Upper, low=5)


def test_new_field_hidden_from_the_repr() -> None:
    """``repr=False`` and a function for it are honoured: a server is shown in logs."""

    class Secret(TCPServer):
        password: str = attrs.field(default="swordfish", repr=False)
        token: str = attrs.field(default="1234", repr=lambda value: "*" * len(value))

    shown = repr(Secret(ADDRESS, Upper))
    assert "swordfish" not in shown
    assert "token=****" in shown


# An __init__ of one's own ---------------------------------------------------------------


class Database(TCPServer):
    """The commonest classic idiom."""

    request_queue_size = 100
    greeting: str = "hello"

    def __init__(self, address: Any, database: str, **fields: Any) -> None:
        self.database = database
        super().__init__(address, Upper, **fields)
        self.ready = True


def test_own_init_keeps_fields_and_overrides() -> None:
    """A subclass with an ``__init__`` of its own is configured like any other."""
    server = Database(ADDRESS, "postgres", greeting="hi")
    assert (server.request_queue_size, server.greeting) == (100, "hi")
    assert (server.database, server.ready) == ("postgres", True)


def test_own_init_is_inherited() -> None:
    """Its subclasses have it, and may have fields besides."""

    class Louder(Database):
        volume: int = 11

    server = Louder(ADDRESS, "postgres", volume=12)
    assert (server.database, server.volume) == ("postgres", 12)


def test_own_init_with_positional_arguments() -> None:
    """The classic call with two positional arguments works from below."""

    class Classic(TCPServer):
        def __init__(self, server_address: Any, RequestHandlerClass: Any) -> None:
            super().__init__(server_address, RequestHandlerClass)

    assert Classic(ADDRESS, Upper).RequestHandlerClass is Upper


def test_own_init_that_passes_the_address_by_name() -> None:
    """Both positional arguments have their classic names."""
    server = TCPServer(RequestHandlerClass=Upper, server_address=ADDRESS)
    assert server.server_address == ADDRESS


def test_own_init_may_assign_fields_afterwards() -> None:
    """An assignment after the base ``__init__`` is validated like any other."""

    class Patient(TCPServer):
        def __init__(self, seconds: Any) -> None:
            super().__init__(ADDRESS, Upper)
            self.timeout = seconds

    assert Patient(5).timeout == 5
    with pytest.raises(ValueError, match=r"Patient\.timeout must be"):
        Patient(-5)


class Early(TCPServer):
    """Assigns fields before it calls the base ``__init__``, as `socketserver` lets one."""

    request_queue_size = 100
    doubled: int = attrs.field(default=1, converter=lambda value: value * 2)
    made: int = attrs.field(default=0, init=False)

    def __init__(self, *arguments: Any, early: dict[str, Any], **fields: Any) -> None:
        for name, value in early.items():
            setattr(self, name, value)
            assert getattr(self, name) == value
        super().__init__(*arguments, **fields)


def test_own_init_may_assign_fields_before() -> None:
    """What is assigned before the base ``__init__`` is kept, and converted once."""
    witness = Witness()
    early = {
        "timeout": 5,
        "request_queue_size": 7,
        "allow_reuse_address": False,
        "observers": [witness],
        "doubled": 3,
        "made": 4,
    }
    server = Early(ADDRESS, Upper, early=early)
    assert configuration(server) == {
        **configuration(TCPServer(ADDRESS, Upper)),
        **early,
        "observers": (witness,),
        "doubled": 6,
    }
    assert server.evolve().doubled == 6


def test_own_init_may_assign_a_field_twice_before() -> None:
    """The last assignment holds, and is converted once."""

    class Twice(Early):
        def __init__(self) -> None:
            self.doubled = 10
            super().__init__(ADDRESS, Upper, early={"doubled": 2})

    assert Twice().doubled == 4


def test_own_init_may_assign_what_is_needed_before() -> None:
    """Address and handler, too, so that they need not be passed."""
    server = Early(early={"server_address": ADDRESS, "RequestHandlerClass": Upper})
    assert (server.server_address, server.RequestHandlerClass) == (ADDRESS, Upper)


def test_own_init_that_assigns_before_and_passes() -> None:
    """An argument wins over an earlier assignment, which wins over a class body."""
    early = {"timeout": 5, "request_queue_size": 7, "server_address": ("early", 1)}
    server = Early(ADDRESS, Upper, early=early, timeout=6)
    assert (server.timeout, server.request_queue_size) == (6, 7)
    assert server.server_address == ADDRESS
    assert Early(ADDRESS, Upper, early={}).request_queue_size == 100


@pytest.mark.parametrize(
    ("early", "kind"),
    [({"timeout": -1}, ValueError), ({"timeout": "5"}, TypeError), ({"limits": 5}, TypeError)],
)
def test_own_init_that_assigns_a_wrong_value_before(early: Any, kind: Any) -> None:
    """It is validated with all the others, by its name."""
    with pytest.raises(kind, match=rf"Early\.{next(iter(early))} must be"):
        Early(ADDRESS, Upper, early=early)


def test_own_init_that_assigns_before_sees_all_fields_validated_together() -> None:
    """A validator sees the others, whichever way they have come."""

    class Assigned(Range):
        def __init__(self, low: int, **fields: Any) -> None:
            self.low = low
            super().__init__(ADDRESS, Upper, **fields)

    assert Assigned(3, high=4).low == 3
    with pytest.raises(ValueError, match="above high"):
        Assigned(3)


def test_own_init_of_a_mix_in_may_assign_before() -> None:
    """A plain mix-in, or one of the library's, is no exception, in whatever order."""

    class Threads:
        def __init__(self, *arguments: Any, **fields: Any) -> None:
            self.daemon_threads = True
            self.max_threads = 3
            super().__init__(*arguments, **fields)

    for bases in ((Threads, ThreadingMixIn, TCPServer), (Threads, TCPServer, ThreadingMixIn)):
        server = new("Mixed", *bases)(ADDRESS, plain_handler)
        assert (server.daemon_threads, server.max_threads) == (True, 3)
        assert pickle.loads(pickle.dumps(server.evolve().max_threads)) == 3  # noqa: S301


def test_own_init_that_calls_more_than_one_base() -> None:
    """Each keeps what the one before has set, unless it is given again."""

    class Both(ThreadingMixIn, TCPServer):
        def __init__(self) -> None:
            TCPServer.__init__(self, ADDRESS, plain_handler, timeout=5)
            ThreadingMixIn.__init__(self, max_threads=3)

    assert (Both().timeout, Both().max_threads) == (5, 3)


async def test_own_init_is_not_called_while_bound() -> None:
    """A bound server cannot be built again, and goes on as it is."""
    async with MemoryServer(MEMORY, Upper) as server:
        with pytest.raises(RuntimeError, match="this MemoryServer is bound"):
            server.__init__(MEMORY, Upper)  # type: ignore[misc]
        assert configuration(server) == configuration(MemoryServer(MEMORY, Upper))


@pytest.mark.parametrize("way", [way for way in COPIES if way != "attrs.evolve"])
def test_own_init_that_assigns_before_survives_copies(way: str) -> None:
    """A copy has the values, and is built: what is assigned to it is validated."""
    twin = COPIES[way](Early(ADDRESS, Upper, early={"timeout": 5, "doubled": 3}))
    assert (twin.timeout, twin.doubled) == (5, 6)
    twin.doubled = 5
    assert twin.doubled == 10
    with pytest.raises(ValueError, match="timeout must be"):
        twin.timeout = -1


def test_own_init_survives_copies() -> None:
    """Copies do not call it again: evolve, copy and pickle take what is there."""
    server = Database(ADDRESS, "postgres")
    twins = [
        server.evolve(greeting="hi"),
        copy.copy(server),
        copy.deepcopy(server),
        pickle.loads(pickle.dumps(server)),  # noqa: S301
    ]
    assert [twin.database for twin in twins] == ["postgres"] * 4


# Refused when building ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TCPServer, UnixStreamServer, Sized, MemoryServer])
def test_bind_and_activate_is_refused(kind: Any) -> None:
    """LC-01: building never binds; whoever asks for it learns what does."""
    for arguments, fields in (
        ((ADDRESS, Upper), {"bind_and_activate": True}),
        ((ADDRESS, Upper), {"bind_and_activate": False}),
        ((ADDRESS, Upper, True), {}),
    ):
        with pytest.raises(TypeError) as caught:
            kind(*arguments, **fields)
        for word in (kind.__name__, "bind_and_activate", "`async with"):
            assert word in str(caught.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"time_out": 5},
            "TCPServer has no field time_out (did you mean timeout or timeouts?). It ",
        ),
        ({"adress_family": 2}, "has no field adress_family (did you mean address_family?)"),
        ({"requestHandlerClass": Upper}, "(did you mean RequestHandlerClass?)"),
        ({"idle": 5}, "idle (it is one of Timeouts: timeouts=Timeouts(idle=...))"),
        ({"requests": 5}, "requests (it is one of Limits: limits=Limits(requests=...))"),
        (
            {"xyz": 5, "time_out": 5},
            "field time_out (did you mean timeout or timeouts?); xyz. It has",
        ),
    ],
)
def test_misspelt_field(given: dict[str, Any], says: str) -> None:
    """UX-06: what is no field is named, with what may have been meant, and what there is."""
    with pytest.raises(TypeError) as caught:
        TCPServer(ADDRESS, Upper, **given)
    message = str(caught.value)
    assert says in message
    assert message.endswith(", server_address, socket_options, timeout, timeouts")
    assert "attrs" not in message


@pytest.mark.parametrize(
    ("kind", "arguments", "missing", "how"),
    [
        (TCPServer, (), "server_address and RequestHandlerClass", ""),
        (TCPServer, (ADDRESS,), "RequestHandlerClass", ""),
        (Greeting, (ADDRESS, Upper), "count", ", count=..."),
    ],
)
def test_missing_field(kind: Any, arguments: Any, missing: str, how: str) -> None:
    """UX-06: what is missing is named, and how to give it."""
    with pytest.raises(TypeError) as caught:
        kind(*arguments)
    name = kind.__name__
    build = f"build it as {name}(server_address, RequestHandlerClass{how})"
    assert str(caught.value) == f"{name} needs {missing}: {build}"


def test_field_given_twice() -> None:
    """UX-06: by place and by name at once."""
    with pytest.raises(TypeError, match="TCPServer got RequestHandlerClass twice"):
        TCPServer(ADDRESS, Upper, RequestHandlerClass=Upper)


BASES: list[tuple[type, ...]] = [
    (trioserver.ThreadingMixIn, trioserver.ProcessMixIn, TCPServer),
    (trioserver.ProcessMixIn, trioserver.ThreadingMixIn, TCPServer),
    (TCPServer, trioserver.ThreadingMixIn, trioserver.ForkingMixIn),
    (trioserver.ThreadingMixIn, trioserver.ForkingUDPServer),
    (trioserver.ThreadingTCPServer, trioserver.ProcessTCPServer),
    (new("Far", trioserver.ThreadingTCPServer), new("Down", trioserver.ForkingMixIn)),
]


@pytest.mark.parametrize("bases", BASES)
def test_two_places_for_handlers_are_refused(bases: tuple[type, ...]) -> None:
    """A class that would run handlers in threads and in processes is refused when it is made."""
    with pytest.raises(TypeError, match="Both derives from both ThreadingMixIn and ProcessMixIn"):
        new("Both", *bases)


@pytest.mark.parametrize(
    ("bases", "name"),
    [
        ((socketserver.ThreadingMixIn, TCPServer), "ThreadingMixIn"),
        ((TCPServer, socketserver.ThreadingMixIn), "ThreadingMixIn"),
        ((trioserver.ThreadingMixIn, socketserver.TCPServer), "TCPServer"),
        ((trioserver.ThreadingMixIn, http.server.HTTPServer), "TCPServer"),
    ],
)
def test_bases_of_socketserver_are_refused(bases: tuple[type, ...], name: str) -> None:
    """Their mix-ins have no effect here, and ours none there: the class is not made."""
    with pytest.raises(TypeError, match=rf"socketserver\.{name}, .*: use trioserver\.{name}"):
        new("Mixed", *bases)


def test_plain_with_is_refused() -> None:
    """A plain ``with`` names what is right."""
    with pytest.raises(TypeError, match="a TCPServer needs `async with`, not `with`"):
        with TCPServer(ADDRESS, Upper):
            pass


# Assignment ----------------------------------------------------------------------------------


def test_assignment_is_validated() -> None:
    """LC-01: a field takes what it would take when building, and keeps its value otherwise."""
    server = Sized(ADDRESS, Upper)
    server.request_queue_size = 5
    with pytest.raises(ValueError, match=r"Sized\.request_queue_size must be .*, not -1"):
        server.request_queue_size = -1
    with pytest.raises(TypeError, match=r"Sized\.limits must be"):
        server.limits = None
    assert server.request_queue_size == 5
    assert server.limits == Limits()


def test_assignment_of_the_address() -> None:
    """The address can be assigned under its public name, and is validated."""
    server = TCPServer(ADDRESS, Upper)
    server.server_address = ("localhost", 80)
    assert server.server_address == ("localhost", 80)
    with pytest.raises(ValueError, match=r"TCPServer\.server_address must be"):
        server.server_address = ("localhost", 80, 90)
    assert server.server_address == ("localhost", 80)


def test_assignment_is_converted() -> None:
    """A sequence of observers is kept as a tuple, assigned or given."""
    server = TCPServer(ADDRESS, Upper)
    witness = Witness()
    server.observers = [witness]
    assert server.observers == (witness,)


VALUES = {
    "server_address": MEMORY,
    "RequestHandlerClass": Upper,
    "timeout": 1,
    "timeouts": trioserver.Timeouts(),
    "limits": Limits(),
    "propagate_errors": True,
    "observers": (),
    "socket_options": (),
    "address_family": None,
    "allow_reuse_address": True,
    "allow_reuse_port": False,
    "request_queue_size": 5,
    "count": 2,
    "names": [],
}


@pytest.mark.parametrize("name", VALUES)
async def test_assignment_while_bound(name: str) -> None:
    """A bound server is what it is: every field refuses in one line, and can be assigned after."""

    class InMemory(MemoryServer, Greeting):
        pass

    server = InMemory(MEMORY, Upper, count=1)
    async with server:
        before = getattr(server, name)
        with pytest.raises(
            RuntimeError, match="cannot be assigned while the server is bound"
        ) as it:
            setattr(server, name, VALUES[name])
        assert name in str(it.value)
        assert "\n" not in str(it.value)
        assert getattr(server, name) == before
    setattr(server, name, VALUES[name])


async def test_own_attributes_at_any_time() -> None:
    """LC-01: what is not a field is the user's own, bound or not."""
    server = MemoryServer(MEMORY, Upper)
    server.database = "one"
    async with server:
        server.database = "two"
        del server.database
        server.cache = {}
    assert not hasattr(server, "database")
    assert server.cache == {}


# Copies ------------------------------------------------------------------------------------------


def test_evolve() -> None:
    """A copy with other values; the original and the rest stay as they are."""
    server = Greeting(ADDRESS, Upper, count=1)
    twin = server.evolve(greeting="hi", server_address=("localhost", 80))
    assert type(twin) is Greeting
    assert (twin.greeting, twin.server_address, twin.count) == ("hi", ("localhost", 80), 1)
    assert (server.greeting, server.server_address) == ("hello", ADDRESS)


def test_evolve_takes_own_attributes_along() -> None:
    """Attributes that are not fields come along."""
    server = TCPServer(ADDRESS, Upper)
    server.database = "postgres"
    assert server.evolve().database == "postgres"


def test_evolve_validates_and_converts() -> None:
    """It refuses what building refuses, and changes nothing then."""
    server = TCPServer(ADDRESS, Upper)
    with pytest.raises(ValueError, match=r"TCPServer\.request_queue_size must be"):
        server.evolve(request_queue_size=-1)
    witness = Witness()
    assert server.evolve(observers=[witness]).observers == (witness,)
    assert server.observers == ()


def test_evolve_validates_the_result() -> None:
    """Fields that belong together can be changed together, in any order."""
    server = Range(ADDRESS, Upper)
    for changes in ({"low": 5, "high": 6}, {"high": 6, "low": 5}):
        assert server.evolve(**changes).low == 5
    with pytest.raises(ValueError, match="above high"):
        server.evolve(low=5)


def test_evolve_of_no_such_field() -> None:
    """A misspelt field is named, beside those that there are."""
    with pytest.raises(
        TypeError, match=r"no field grating \(did you mean greeting\?\)\. It has .*, greeting, "
    ):
        Greeting(ADDRESS, Upper, count=1).evolve(grating="hi")


def test_evolve_by_attrs() -> None:
    """`attrs.evolve` works, too."""
    twin = attrs.evolve(Greeting(ADDRESS, Upper, count=1), greeting="hi", server_address=("", 1))
    assert (twin.greeting, twin.count, twin.server_address) == ("hi", 1, ("", 1))


@pytest.mark.parametrize("way", COPIES)
def test_copies_are_equal_and_apart(way: str) -> None:
    """Every way to copy gives the same configuration, in another object."""
    server = Greeting(ADDRESS, Upper, count=1, limits=Limits(requests=5), timeout=3)
    twin = COPIES[way](server)
    assert twin is not server
    assert type(twin) is Greeting
    assert configuration(twin) == configuration(server)
    twin.greeting = "hi"
    assert server.greeting == "hello"


@pytest.mark.parametrize("way", COPIES)
async def test_copies_of_a_bound_server(way: str) -> None:
    """LC-01: a copy of a bound server is unbound, has the configured address, and can be bound."""
    with trio.fail_after(10):
        async with TCPServer(("127.0.0.1", 0), Upper) as server:
            assert server.server_address != ("127.0.0.1", 0)
            twin = COPIES[way](server)
            assert twin.server_address == ("127.0.0.1", 0)
            assert twin.socket is None
            assert not twin.draining
            twin.timeout = 5
            async with twin:
                assert twin.server_address[1] != server.server_address[1]


def test_copies_of_a_server_that_was_shut_down() -> None:
    """A shutdown before the first run is the original's alone."""
    server = MemoryServer(MEMORY, Upper)
    server.shutdown()

    async def main() -> None:
        async with server.evolve() as twin, trio.open_nursery() as nursery:
            nursery.start_soon(twin.serve_forever)
            await trio.testing.wait_all_tasks_blocked()
            assert not twin.draining
            twin.shutdown()

    trio.run(main)


def test_servers_are_compared_by_identity() -> None:
    """A server is a thing, not a value: two of them are never equal, and both hash."""
    server = TCPServer(ADDRESS, Upper)
    assert server != server.evolve()
    assert {server: 1}[server] == 1
    assert weakref.ref(server)() is server


def test_servers_are_collectable() -> None:
    """Nothing keeps a server that nobody uses, without the help of the garbage collector."""
    gc.disable()
    try:
        server = TCPServer(ADDRESS, Upper)
        gone = weakref.ref(server)
        del server
        assert gone() is None
    finally:
        gc.enable()


# Showing -----------------------------------------------------------------------------------------


def test_repr_shows_every_field() -> None:
    """The repr has the class and its fields, the address under its public name."""
    shown = repr(Greeting(ADDRESS, Upper, count=1, greeting="hi"))
    assert shown.startswith("Greeting(server_address=('localhost', 0), RequestHandlerClass=")
    for part in ("greeting='hi'", "count=1", "names=[]", "limits=Limits(requests=1024"):
        assert part in shown


async def test_repr_shows_the_configuration_while_bound() -> None:
    """The repr of a bound server is the same."""
    server = MemoryServer(MEMORY, Upper)
    before = repr(server)
    async with server:
        assert repr(server) == before


# The colours of hooks -----------------------------------------------------------------------------

ASYNC_HOOKS = [
    "server_bind",
    "server_activate",
    "verify_request",
    "process_request",
    "finish_request",
    "shutdown_request",
    "close_request",
    "handle_error",
    "handle_timeout",
    "service_actions",
    "server_close",
]
ASYNC_METHODS = ["serve_forever", "handle_request", "wait_closed"]
PLAIN_METHODS = [
    "get_request",
    "shutdown",
    "cancel_request",
    "fileno",
    "statistics",
    "snapshot",
    "evolve",
]


def plain(self: Any, *arguments: Any) -> None:
    """A plain function."""


async def coroutine(self: Any, *arguments: Any) -> None:
    """An async one."""


async def yielding(self: Any, *arguments: Any) -> Any:
    """An async generator, which is neither."""
    yield


@pytest.mark.parametrize("name", [*ASYNC_HOOKS, *ASYNC_METHODS])
@pytest.mark.parametrize("method", [plain, yielding, None, True])
def test_plain_hook_is_refused(name: str, method: Any) -> None:
    """EX-10: a hook that must be async is refused in plain, when the class is made."""
    with pytest.raises(TypeError, match=rf"Wrong\.{name} must be an `async def`"):
        new("Wrong", **{name: method})


@pytest.mark.parametrize("name", PLAIN_METHODS)
@pytest.mark.parametrize("method", [coroutine, yielding, None])
def test_async_method_is_refused(name: str, method: Any) -> None:
    """EX-10: what decides at once is refused as ``async def``, when the class is made."""
    with pytest.raises(TypeError, match=rf"Wrong\.{name} must be a plain `def`"):
        new("Wrong", **{name: method})


def test_hook_with_a_yield_is_told_of_it() -> None:
    """EX-10: who has written ``async def`` is not asked to do so."""
    with pytest.raises(TypeError, match="must be an `async def` without a `yield`: what may wait"):
        new("Wrong", verify_request=yielding)
    with pytest.raises(TypeError, match="must be a plain `def` without a `yield`: it must not"):
        new("Wrong", get_request=yielding)


@pytest.mark.parametrize(
    ("hook", "says"),
    [
        ("get_request", r"Wrong\.get_request\(self\) must take \(self, listener\)"),
        ("verify_request", r"\(self\) must take \(self, request, client_address\)"),
        ("finish_request", r"\(self\) must take \(self, request, client_address\)"),
        ("shutdown_request", r"\(self\) must take \(self, request\)"),
        ("server_bind", None),
        ("handle_timeout", None),
    ],
)
def test_hook_with_the_wrong_parameters(hook: str, says: str | None) -> None:
    """EX-10: the classic ``get_request(self)``, say, is refused when the class is made."""

    def sync(self: Any) -> None: ...

    async def hooked(self: Any) -> None: ...

    mine = sync if hook == "get_request" else hooked
    if says is None:
        new("Right", **{hook: mine})
        return
    with pytest.raises(TypeError, match=says):
        new("Wrong", **{hook: mine})


@pytest.mark.parametrize("name", ASYNC_HOOKS)
def test_hook_of_the_right_colour(name: str) -> None:
    """An async hook is taken, also as a static or class method, or behind a good decorator."""
    for method in (coroutine, staticmethod(coroutine), classmethod(coroutine)):
        new("Right", **{name: method})


def test_plain_hook_in_a_mix_in_is_refused() -> None:
    """The colour counts where it is mixed in, in whatever class it stands."""
    mix_in = new("MixIn", object, verify_request=plain)
    with pytest.raises(TypeError, match=r"Wrong\.verify_request must be an `async def`"):
        new("Wrong", mix_in, TCPServer)
    new("Right", TCPServer, mix_in)  # it is never called there


def test_plain_hook_in_a_subclass_of_a_subclass_is_refused() -> None:
    """However far down it stands."""
    with pytest.raises(TypeError, match=r"Wrong\.handle_error must be an `async def`"):
        new("Wrong", new("Right", handle_error=coroutine), handle_error=plain)


def test_names_of_ones_own_have_any_colour() -> None:
    """What the library has no word for is nobody's business."""
    new("Right", greet=plain, reload=coroutine)
