"""How a server class comes to its fields, in every way that classic code and attrs know."""

import abc
import copy
import gc
import http.server
import pickle
import socketserver
import weakref
from functools import partial
from typing import ClassVar, Generic, TypeVar

import attrs
import pytest
import trio
from support import Upper, Witness, hold
from support.scenes import table

import trioserver
from trioserver import Limits, TCPServer, ThreadingMixIn, UnixStreamServer
from trioserver.testing import MemoryServer

ADDRESS = ("localhost", 0)
MEMORY = ("memory", 1)


class Notes:
    request_queue_size = 7
    note = "mixed in"


class Sized(TCPServer):
    request_queue_size = 100


class Restated(TCPServer):
    request_queue_size: int | None = 100


class Greeting(TCPServer):
    greeting: str = "hello"
    names: list[str] = attrs.field(factory=list)
    count: int = attrs.field(kw_only=True)


def size_of(kind, **fields):
    """The field that most of these tests are about."""
    return kind(ADDRESS, Upper, **fields).request_queue_size


def new(name, *bases, **body):
    """A class, made here and now."""
    return type(name, bases or (TCPServer,), {"__module__": __name__, **body})


def plain_handler(request, client_address, server):
    """A handler for threads."""


def refuses(says, *bases, kind=TypeError, **body):
    """No such class can be made."""
    with pytest.raises(kind, match=says):
        new("Wrong", *bases, **body)


def configuration(server):
    """All fields of a server, by name."""
    return {field.name: getattr(server, field.name) for field in attrs.fields(type(server))}


def pickled(server, protocol=pickle.DEFAULT_PROTOCOL):
    """A server that has been elsewhere."""
    return pickle.loads(pickle.dumps(server, protocol))  # noqa: S301


PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "evolve": lambda server: server.evolve(),
    "attrs.evolve": attrs.evolve,
    **{f"pickle {number}": partial(pickled, protocol=number) for number in PROTOCOLS},
}


# Overriding a default -----------------------------------------------------------


@pytest.mark.parametrize("kind", [Sized, Restated])
def test_override_is_the_default(kind):
    """A value in a class body is its field's default, however far down; an argument still wins."""
    assert size_of(TCPServer) is None
    assert size_of(kind) == 100
    assert size_of(kind, request_queue_size=5) == 5
    grandchild = new("Grandchild", child := new("Child", kind))
    assert size_of(child) == size_of(grandchild) == 100
    assert size_of(new("Other", grandchild, request_queue_size=3)) == 3
    assert size_of(grandchild) == 100


class Annotated:
    request_queue_size: int = 8


class Patient(TCPServer):
    timeout: float | None = 5


one_of = partial(new, "B", Restated, request_queue_size=1)


@table(
    "kind, size",
    {
        "a plain mix-in overrides": (new("Server", Notes, TCPServer), 7),
        "whether it says a type or not": (new("Server", Annotated, TCPServer), 8),
        "so does a base of one": (new("Server", new("More", Notes), TCPServer), 7),
        "what comes first in the MRO holds": (new("First", Notes, Sized), 7),
        "before a restated field, too": (new("First", Notes, Restated), 7),
        "the class's own comes first": (new("Own", Notes, Sized, request_queue_size=9), 9),
        "from left": (new("Left", new("A", Sized), one_of()), 100),
        "to right": (new("Right", one_of(), new("A", Sized)), 1),
        "what comes after the field's definition does not count": (
            new("Last", TCPServer, Notes),
            None,
        ),
    },
)
def test_override_follows_the_method_resolution_order(kind, size):
    """As for every attribute, the whole MRO is searched."""
    assert size_of(kind) == size


def test_override_reaches_diamonds():
    """Two subclasses of one server, put together, keep the override of either."""
    both = new("Both", Sized, Patient)(ADDRESS, Upper)
    assert (both.request_queue_size, both.timeout) == (100, 5)
    assert new("Child", Patient)(ADDRESS, Upper).timeout == 5


class Small(TCPServer):
    limits: Limits = attrs.field(factory=lambda: Limits(requests=5))


@pytest.mark.parametrize("kind", [new("Smaller", limits=Limits(requests=5)), Small])
def test_override_of_a_field_with_a_factory(kind):
    """A value, or a factory of one's own, takes the place of a factory."""
    assert kind(ADDRESS, Upper).limits == Limits(requests=5)
    assert new("Child", kind)(ADDRESS, Upper).limits == Limits(requests=5)


def test_override_is_converted():
    """A default goes through the converter, like what is assigned; a function stays one."""
    for handler in (Upper, hold):
        assert new("Server", RequestHandlerClass=handler)(ADDRESS).RequestHandlerClass is handler
    witness = Witness()
    assert new("Watched", observers=[witness])(ADDRESS, Upper).observers == (witness,)
    server = TCPServer(ADDRESS, Upper)
    server.observers = [witness]
    assert server.observers == (witness,)


@pytest.mark.parametrize("annotation", [{}, {"request_queue_size": "int | None"}])
def test_override_is_validated_when_the_class_is_made(annotation):
    """A wrong default is told of at once, by the field's name, of a mix-in, too."""
    says = "request_queue_size must be a whole number"
    wrong = new("MixIn", object, request_queue_size=-1)
    refuses(says, kind=ValueError, request_queue_size=-1, __annotations__=annotation)
    refuses(says, request_queue_size="5", __annotations__=annotation)
    refuses(says, wrong, TCPServer, kind=ValueError)


def test_override_of_the_address():
    """A class-level address would hide the bound one, and is refused, as a field that is none."""
    there = {"server_address": ("localhost", 80)}
    refuses(r"Wrong\.server_address cannot be a class attribute", **there)
    refuses("server_address", new("There", object, **there), TCPServer)
    field = attrs.field(default=7)
    refuses("request_queue_size is a field: it needs an annotation", request_queue_size=field)


class Even(TCPServer):
    request_queue_size: int | None = attrs.field(default=2)

    @request_queue_size.validator
    def _even(self, field, value):
        if value % 2:
            raise ValueError("odd")


def test_override_with_a_validator_of_ones_own():
    """A restated field may bring its own validator, which then counts alone."""
    assert size_of(Even) == 2
    with pytest.raises(ValueError, match="odd"):
        size_of(Even, request_queue_size=3)


def test_override_of_a_name_that_is_no_field():
    """Other names stay what they are, plain class attributes; a `ClassVar` is no field."""

    class Counted(Notes, TCPServer):
        made: ClassVar[int] = 0

    assert Counted(ADDRESS, Upper).note == "mixed in"
    assert not {"note", "made"} & set(attrs.fields_dict(Counted))
    with pytest.raises(TypeError, match="made"):
        Counted(ADDRESS, Upper, made=1)


def test_override_with_typing_and_abstract_bases():
    """Generic and abstract base classes do not get in the way."""
    thing = TypeVar("thing")

    class Typed(TCPServer, Generic[thing]):
        request_queue_size = 100

    class Abstract(TCPServer, abc.ABC):
        request_queue_size = 100

        @abc.abstractmethod
        async def verify_request(self, request, client_address): ...

    assert size_of(Typed[int]) == 100
    assert size_of(new("Concrete", Abstract, verify_request=coroutine)) == 100
    with pytest.raises(TypeError, match="abstract"):
        size_of(Abstract)


# New fields ----------------------------------------------------------------------


def test_new_fields():
    """An annotated attribute is a keyword, without any decorator, inherited and overridden."""
    server, other = (Greeting(ADDRESS, Upper, count=count) for count in (3, 1))
    assert (server.greeting, server.names, server.count) == ("hello", [], 3)
    assert server.names is not other.names
    assert Greeting(ADDRESS, Upper, count=1, greeting="hi").greeting == "hi"
    child = new("Child", Greeting, greeting="hi", count=2)
    grandchild = new("Grandchild", child)(ADDRESS, Upper)
    assert (grandchild.greeting, grandchild.count) == ("hi", 2)
    with pytest.raises(TypeError, match="two positional arguments"):
        Greeting(ADDRESS, Upper, "hi", count=1)


class Doubled(TCPServer):
    doubled: int = attrs.field(default=1, converter=lambda value: value * 2)


class Named(TCPServer):
    title: str = attrs.field(
        default="x",
        converter=attrs.Converter(lambda value, it: f"{value} of {type(it)}", takes_self=True),
    )


def test_new_field_is_converted_once():
    """A converter sees each value once, when building, assigning and evolving."""
    server = Doubled(ADDRESS, Upper)
    assert server.doubled == 2
    server.doubled = 3
    assert server.doubled == 6
    assert server.evolve().doubled == 6
    assert server.evolve(doubled=1).doubled == 2
    named = Named(ADDRESS, Upper)
    assert named.title == f"x of {Named}"
    named.title = "y"
    assert named.title == f"y of {Named}"
    assert named.evolve(title="z").title == f"z of {Named}"


class Range(TCPServer):
    low: int = attrs.field(default=1)
    high: int = attrs.field(default=2)

    @low.validator
    def _ordered(self, field, value):
        if value > self.high:
            raise ValueError("low must not be above high")


def test_new_field_is_validated_when_all_are_set():
    """A validator sees the other fields, as attrs promises, in whatever order they change."""
    server = Range(ADDRESS, Upper)
    for changes in ({"low": 5, "high": 6}, {"high": 6, "low": 5}):
        assert Range(ADDRESS, Upper, **changes).low == server.evolve(**changes).low == 5
    for build in (server.evolve, partial(Range, ADDRESS, Upper)):
        with pytest.raises(ValueError, match="above high"):
            build(low=5)


# An __init__ of one's own ---------------------------------------------------------------


class Database(TCPServer):
    request_queue_size = 100
    greeting: str = "hello"

    def __init__(self, address, database, **fields):
        self.database = database
        super().__init__(address, Upper, **fields)
        self.ready = True


def test_own_init_keeps_fields_and_overrides():
    """A subclass with an ``__init__`` of its own is configured like any other, and inherited."""

    class Louder(Database):
        volume: int = 11

    server = Louder(ADDRESS, "postgres", greeting="hi", volume=12)
    assert (server.request_queue_size, server.greeting, server.volume) == (100, "hi", 12)
    assert (server.database, server.ready) == ("postgres", True)


class Classic(TCPServer):
    def __init__(self, server_address, RequestHandlerClass):
        super().__init__(server_address, RequestHandlerClass)
        self.timeout = server_address[1]


def test_own_init_has_the_classic_names():
    """Two positional arguments with classic names; what is assigned afterwards is validated."""
    for kind in (Classic, TCPServer):
        server = kind(RequestHandlerClass=Upper, server_address=ADDRESS)
        assert (server.server_address, server.RequestHandlerClass) == (ADDRESS, Upper)
    assert Classic(("localhost", 5), Upper).timeout == 5
    with pytest.raises(TypeError, match=r"Classic\.timeout must be"):
        Classic(("localhost", "http"), Upper)


class Early(Doubled):
    """Assigns fields before it calls the base ``__init__``, as `socketserver` lets one."""

    request_queue_size = 100
    made: int = attrs.field(default=0, init=False)

    def __init__(self, *arguments, early, **fields):
        for name, value in early.items():
            setattr(self, name, value)
            assert getattr(self, name) == value
        super().__init__(*arguments, **fields)


def test_own_init_may_assign_fields_before():
    """What is assigned before the base ``__init__`` is kept, and the last is converted once."""
    witness = Witness()
    early = {
        "timeout": 5,
        "request_queue_size": 7,
        "allow_reuse_address": False,
        "observers": [witness],
        "doubled": 3,
        "made": 4,
    }

    class Twice(Early):
        def __init__(self, *arguments, **fields):
            self.doubled = 10
            super().__init__(*arguments, **fields)

    for kind in (Early, Twice):
        server = kind(ADDRESS, Upper, early=early)
        plain_one = configuration(TCPServer(ADDRESS, Upper))
        converted = {"observers": (witness,), "doubled": 6}
        assert configuration(server) == {**plain_one, **early, **converted}
        assert server.evolve().doubled == 6


def test_own_init_that_assigns_before_and_passes():
    """An argument wins over an earlier assignment, which wins over a class body."""
    early = {"timeout": 5, "request_queue_size": 7, "server_address": ("early", 1)}
    server = Early(ADDRESS, Upper, early=early, timeout=6)
    assert (server.timeout, server.request_queue_size) == (6, 7)
    assert server.server_address == ADDRESS
    assert Early(ADDRESS, Upper, early={}).request_queue_size == 100
    server = Early(early={"server_address": ADDRESS, "RequestHandlerClass": Upper})
    assert (server.server_address, server.RequestHandlerClass) == (ADDRESS, Upper)


@pytest.mark.parametrize(
    ("early", "kind"),
    [({"timeout": -1}, ValueError), ({"timeout": "5"}, TypeError), ({"limits": 5}, TypeError)],
)
def test_own_init_that_assigns_a_wrong_value_before(early, kind):
    """It is validated with all the others, by its name."""
    with pytest.raises(kind, match=rf"Early\.{next(iter(early))} must be"):
        Early(ADDRESS, Upper, early=early)


class Assigned(Range):
    def __init__(self, low, **fields):
        self.low = low
        super().__init__(ADDRESS, Upper, **fields)


def test_own_init_that_assigns_before_sees_all_fields_validated_together():
    """A validator sees the others, whichever way they have come."""
    assert Assigned(3, high=4).low == 3
    with pytest.raises(ValueError, match="above high"):
        Assigned(3)


def test_own_init_of_a_mix_in_may_assign_before():
    """A plain mix-in, or one of the library's, is no exception, in whatever order."""

    class Threads:
        def __init__(self, *arguments, **fields):
            self.daemon_threads = True
            self.max_threads = 3
            super().__init__(*arguments, **fields)

    for bases in ((Threads, ThreadingMixIn, TCPServer), (Threads, TCPServer, ThreadingMixIn)):
        server = new("Mixed", *bases)(ADDRESS, plain_handler)
        assert (server.daemon_threads, server.max_threads) == (True, 3)
        assert pickle.loads(pickle.dumps(server.evolve().max_threads)) == 3  # noqa: S301


def test_own_init_that_calls_more_than_one_base():
    """Each keeps what the one before has set, unless it is given again."""

    class Both(ThreadingMixIn, TCPServer):
        def __init__(self):
            TCPServer.__init__(self, ADDRESS, plain_handler, timeout=5)
            ThreadingMixIn.__init__(self, max_threads=3)

    assert (Both().timeout, Both().max_threads) == (5, 3)


async def test_own_init_is_not_called_while_bound():
    """A bound server cannot be built again, and goes on as it is."""
    async with MemoryServer(MEMORY, Upper) as server:
        with pytest.raises(RuntimeError, match="this MemoryServer is bound"):
            server.__init__(MEMORY, Upper)
        assert configuration(server) == configuration(MemoryServer(MEMORY, Upper))


@pytest.mark.parametrize("way", [way for way in COPIES if way != "attrs.evolve"])
def test_own_init_survives_copies(way):
    """Copies do not call it again: a copy has the values, and is built, so it is validated."""
    assert COPIES[way](Database(ADDRESS, "postgres")).database == "postgres"
    twin = COPIES[way](Early(ADDRESS, Upper, early={"timeout": 5, "doubled": 3}))
    assert (twin.timeout, twin.doubled) == (5, 6)
    twin.doubled = 5
    assert twin.doubled == 10
    with pytest.raises(ValueError, match="timeout must be"):
        twin.timeout = -1


# Refused when building ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TCPServer, UnixStreamServer, Sized, MemoryServer])
def test_bind_and_activate_is_refused(kind):
    """LC-01: building never binds; whoever asks for it learns what does."""
    by_name = [([], {"bind_and_activate": flag}) for flag in (True, False)]
    for more, fields in [([True], {}), *by_name]:
        with pytest.raises(TypeError) as caught:
            kind(ADDRESS, Upper, *more, **fields)
        for word in (kind.__name__, "bind_and_activate", "`async with"):
            assert word in str(caught.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("time_out", "TCPServer has no field time_out (did you mean timeout or timeouts?). It "),
        ("adress_family", "has no field adress_family (did you mean address_family?)"),
        ("requestHandlerClass", "(did you mean RequestHandlerClass?)"),
        ("idle", "idle (it is one of Timeouts: timeouts=Timeouts(idle=...))"),
        ("requests", "requests (it is one of Limits: limits=Limits(requests=...))"),
        ("xyz time_out", "field time_out (did you mean timeout or timeouts?); xyz. It has"),
    ],
)
def test_misspelt_field(given, says):
    """UX-06: what is no field is named, with what may have been meant, and what there is."""
    with pytest.raises(TypeError) as caught:
        TCPServer(ADDRESS, Upper, **dict.fromkeys(given.split(), 5))
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
def test_missing_field(kind, arguments, missing, how):
    """UX-06: what is missing is named, and how to give it."""
    with pytest.raises(TypeError) as caught:
        kind(*arguments)
    name = kind.__name__
    build = f"build it as {name}(server_address, RequestHandlerClass{how})"
    assert str(caught.value) == f"{name} needs {missing}: {build}"


def test_building_and_entering_wrongly():
    """UX-06: a field by place and by name at once; a plain ``with`` names what is right."""
    with pytest.raises(TypeError, match="TCPServer got RequestHandlerClass twice"):
        TCPServer(ADDRESS, Upper, RequestHandlerClass=Upper)
    with pytest.raises(TypeError, match="a TCPServer needs `async with`, not `with`"):
        with TCPServer(ADDRESS, Upper):
            pass


@pytest.mark.parametrize(
    "bases",
    [
        (trioserver.ThreadingMixIn, trioserver.ProcessMixIn, TCPServer),
        (trioserver.ProcessMixIn, trioserver.ThreadingMixIn, TCPServer),
        (TCPServer, trioserver.ThreadingMixIn, trioserver.ForkingMixIn),
        (trioserver.ThreadingMixIn, trioserver.ForkingUDPServer),
        (trioserver.ThreadingTCPServer, trioserver.ProcessTCPServer),
        (new("Far", trioserver.ThreadingTCPServer), new("Down", trioserver.ForkingMixIn)),
    ],
)
def test_two_places_for_handlers_are_refused(bases):
    """A class that would run handlers in threads and in processes is refused when it is made."""
    refuses("Wrong derives from both ThreadingMixIn and ProcessMixIn", *bases)


@pytest.mark.parametrize(
    ("bases", "name"),
    [
        ((socketserver.ThreadingMixIn, TCPServer), "ThreadingMixIn"),
        ((TCPServer, socketserver.ThreadingMixIn), "ThreadingMixIn"),
        ((trioserver.ThreadingMixIn, socketserver.TCPServer), "TCPServer"),
        ((trioserver.ThreadingMixIn, http.server.HTTPServer), "TCPServer"),
    ],
)
def test_bases_of_socketserver_are_refused(bases, name):
    """Their mix-ins have no effect here, and ours none there: the class is not made."""
    refuses(rf"socketserver\.{name}, .*: use trioserver\.{name}", *bases)


# Assignment ----------------------------------------------------------------------------------


def test_assignment_is_validated():
    """LC-01: a field takes what it would take when building, and keeps its value otherwise."""
    server = Sized(ADDRESS, Upper)
    server.request_queue_size = 5
    server.server_address = ("localhost", 80)
    for name, value, kind in (
        ("request_queue_size", -1, ValueError),
        ("limits", None, TypeError),
        ("server_address", ("localhost", 80, 90), ValueError),
    ):
        with pytest.raises(kind, match=rf"Sized\.{name} must be"):
            setattr(server, name, value)
    assert (server.request_queue_size, server.limits) == (5, Limits())
    assert server.server_address == ("localhost", 80)


VALUES = (
    {"server_address": MEMORY, "RequestHandlerClass": Upper, "address_family": None}
    | {"timeout": 1, "timeouts": trioserver.Timeouts(), "limits": Limits(), "observers": ()}
    | {"propagate_errors": True, "allow_reuse_address": True, "allow_reuse_port": False}
    | {"socket_options": (), "request_queue_size": 5, "count": 2, "names": []}
)


@pytest.mark.parametrize("name", VALUES)
async def test_assignment_while_bound(name):
    """A bound server is what it is: every field refuses in one line, and can be assigned after."""
    server = new("InMemory", MemoryServer, Greeting)(MEMORY, Upper, count=1)
    async with server:
        before = getattr(server, name)
        with pytest.raises(RuntimeError, match=f".*{name}.* while the server is bound") as it:
            setattr(server, name, VALUES[name])
        assert "cannot be assigned" in str(it.value)
        assert "\n" not in str(it.value)
        assert getattr(server, name) == before
    setattr(server, name, VALUES[name])


async def test_own_attributes_at_any_time():
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


def test_evolve():
    """A copy with other values, by attrs, too; the original and the rest stay as they are."""
    server = Greeting(ADDRESS, Upper, count=1)
    server.database = "postgres"
    for evolve in (Greeting.evolve, attrs.evolve):
        twin = evolve(server, greeting="hi", server_address=("localhost", 80))
        assert type(twin) is Greeting
        assert (twin.greeting, twin.server_address, twin.count) == ("hi", ("localhost", 80), 1)
        assert (server.greeting, server.server_address) == ("hello", ADDRESS)
    assert server.evolve().database == "postgres"


def test_evolve_validates_and_converts():
    """It refuses what building refuses, and changes nothing then."""
    server = Greeting(ADDRESS, Upper, count=1)
    with pytest.raises(ValueError, match=r"Greeting\.request_queue_size must be"):
        server.evolve(request_queue_size=-1)
    says = r"no field grating \(did you mean greeting\?\)\. It has .*, greeting, "
    with pytest.raises(TypeError, match=says):
        server.evolve(grating="hi")
    witness = Witness()
    assert server.evolve(observers=[witness]).observers == (witness,)
    assert server.observers == ()


@pytest.mark.parametrize("way", COPIES)
def test_copies_are_equal_and_apart(way):
    """Every way to copy gives the same configuration, in another object."""
    server = Greeting(ADDRESS, Upper, count=1, limits=Limits(requests=5), timeout=3)
    twin = COPIES[way](server)
    assert twin is not server
    assert type(twin) is Greeting
    assert configuration(twin) == configuration(server)
    twin.greeting = "hi"
    assert server.greeting == "hello"


@pytest.mark.parametrize("way", COPIES)
async def test_copies_of_a_bound_server(way):
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


def test_copies_of_a_server_that_was_shut_down():
    """A shutdown before the first run is the original's alone."""
    server = MemoryServer(MEMORY, Upper)
    server.shutdown()

    async def main():
        async with server.evolve() as twin, trio.open_nursery() as nursery:
            nursery.start_soon(twin.serve_forever)
            await trio.testing.wait_all_tasks_blocked()
            assert not twin.draining
            twin.shutdown()

    trio.run(main)


def test_servers_are_compared_by_identity():
    """A server is a thing, not a value; nothing keeps one that nobody uses."""
    server = TCPServer(ADDRESS, Upper)
    assert server != server.evolve()
    assert {server: 1}[server] == 1
    gone = weakref.ref(server)
    assert gone() is server
    gc.disable()
    try:
        del server
        assert gone() is None
    finally:
        gc.enable()


# Showing -----------------------------------------------------------------------------------------


class Secret(TCPServer):
    password: str = attrs.field(default="swordfish", repr=False)
    token: str = attrs.field(default="1234", repr=lambda value: "*" * len(value))


async def test_repr_shows_every_field():
    """As configured, also while bound; what attrs is told to hide is not in logs."""
    shown = repr(Greeting(ADDRESS, Upper, count=1, greeting="hi"))
    assert shown.startswith("Greeting(server_address=('localhost', 0), RequestHandlerClass=")
    for part in ("greeting='hi'", "count=1", "names=[]", "limits=Limits(requests=1024"):
        assert part in shown
    shown = repr(Secret(ADDRESS, Upper))
    assert "swordfish" not in shown
    assert "token=****" in shown
    before = repr(server := MemoryServer(MEMORY, Upper))
    async with server:
        assert repr(server) == before


# The colours of hooks -----------------------------------------------------------------------------

ASYNC_HOOKS = [
    *("server_bind", "server_activate", "server_close", "service_actions", "verify_request"),
    *("process_request", "finish_request", "shutdown_request", "close_request"),
    *("handle_error", "handle_timeout"),
]
ASYNC_METHODS = ["serve_forever", "handle_request", "wait_closed"]
PLAIN_METHODS = ["get_request", "shutdown", "cancel_request", "fileno", "statistics", "snapshot"]


def plain(self, *arguments):
    """A plain function."""


async def coroutine(self, *arguments):
    """An async one."""


async def yielding(self, *arguments):
    """An async generator, which is neither."""
    yield


@pytest.mark.parametrize("name", [*ASYNC_HOOKS, *ASYNC_METHODS])
@pytest.mark.parametrize("method", [plain, yielding, None, True])
def test_plain_hook_is_refused(name, method):
    """EX-10: a hook that must be async is refused in plain, when the class is made."""
    refuses(rf"Wrong\.{name} must be an `async def`", **{name: method})


@pytest.mark.parametrize("name", [*PLAIN_METHODS, "evolve"])
@pytest.mark.parametrize("method", [coroutine, yielding, None])
def test_async_method_is_refused(name, method):
    """EX-10: what decides at once is refused as ``async def``, when the class is made."""
    refuses(rf"Wrong\.{name} must be a plain `def`", **{name: method})


async def of_nothing(self):
    """Takes nothing besides."""


def plain_of_nothing(self):
    """Takes nothing besides, at once."""


@pytest.mark.parametrize(
    ("hook", "method", "says"),
    [
        ("verify_request", yielding, "an `async def` without a `yield`: what may wait"),
        ("get_request", yielding, "a plain `def` without a `yield`: it must not"),
        ("get_request", plain_of_nothing, r"\(self\) must take \(self, listener\)"),
        ("verify_request", of_nothing, r"\(self\) must take \(self, request, client_address\)"),
        ("finish_request", of_nothing, r"\(self\) must take \(self, request, client_address\)"),
        ("shutdown_request", of_nothing, r"\(self\) must take \(self, request\)"),
    ],
)
def test_hook_that_is_told_what_it_lacks(hook, method, says):
    """EX-10: who wrote ``async def`` is not asked to; wrong parameters are told of, too."""
    refuses(rf"Wrong\.{hook}.*{says}", **{hook: method})


@pytest.mark.parametrize("name", ASYNC_HOOKS)
def test_hook_of_the_right_colour(name):
    """An async hook is taken, also as a static or class method, and so are names of one's own."""
    for method in (coroutine, staticmethod(coroutine), classmethod(coroutine)):
        new("Right", **{name: method})
    new("Right", server_bind=of_nothing, handle_timeout=of_nothing, greet=plain, reload=coroutine)


def test_plain_hook_in_a_base_is_refused():
    """The colour counts where it is mixed in, in whatever class it stands, however far down."""
    mix_in = new("MixIn", object, verify_request=plain)
    refuses(r"Wrong\.verify_request must be an `async def`", mix_in, TCPServer)
    new("Right", TCPServer, mix_in)  # it is never called there
    right = new("Right", handle_error=coroutine)
    refuses(r"Wrong\.handle_error must be an `async def`", right, handle_error=plain)
