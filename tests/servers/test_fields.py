"""How a server class comes to its fields, in every way that classic code and attrs know."""

import copy
import http.server
import pickle
import socketserver
from functools import partial
from typing import Any, ClassVar

import attrs
import pytest
import trio
from support import Upper, Witness, hold

import trioserver
from trioserver import Limits, ProcessMixIn, TCPServer, ThreadingMixIn, UnixStreamServer
from trioserver.testing import MemoryServer

ADDRESS = ("127.0.0.1", 0)
MEMORY = ("memory", 1)


def new(name, *bases, **body):
    """A class, made here and now."""
    return type(name, bases or (TCPServer,), {"__module__": __name__, **body})


def refuses(says, *bases, kind=TypeError, **body):
    """No such class can be made."""
    with pytest.raises(kind, match=says):
        new("Wrong", *bases, **body)


def size_of(kind, **fields):
    """The field that most of these tests are about."""
    return kind(ADDRESS, Upper, **fields).request_queue_size


def configuration(server):
    """All fields of a server, by name."""
    return {field.name: getattr(server, field.name) for field in attrs.fields(type(server))}


PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "evolve": lambda server: server.evolve(),
    "attrs.evolve": attrs.evolve,
    **{f"pickle {n}": lambda it, n=n: pickle.loads(pickle.dumps(it, n)) for n in PROTOCOLS},  # noqa: S301
}

Notes = new("Notes", object, request_queue_size=7, note="mixed in")
Sized = new("Sized", request_queue_size=100)


class Restated(TCPServer):
    request_queue_size: int | None = 100


class Greeting(TCPServer):
    greeting: str = "hello"
    names: list[str] = attrs.field(factory=list)
    count: int = attrs.field(kw_only=True)


def test_override_is_the_default():
    """A value in a class body is its field's default, however far down; an argument still wins.

    As for every attribute, the whole MRO is searched, up to the field's own definition.
    """

    class Annotated:
        request_queue_size: int = 8

    assert size_of(TCPServer) is None
    for kind in (Sized, Restated):
        assert (size_of(kind), size_of(kind, request_queue_size=5)) == (100, 5)
        grandchild = new("Grandchild", child := new("Child", kind))
        assert size_of(child) == size_of(grandchild) == 100
        assert size_of(new("Other", grandchild, request_queue_size=3)) == 3
        both = new("Both", kind, new("Patient", timeout=5))(ADDRESS, Upper)
        assert (both.request_queue_size, both.timeout) == (100, 5)
    one = new("One", Restated, request_queue_size=1)
    assert size_of(new("Mixed", Notes, TCPServer)) == 7
    assert size_of(new("Mixed", new("More", Notes), TCPServer)) == 7
    assert size_of(new("Mixed", Annotated, TCPServer)) == 8
    assert size_of(new("First", Notes, Sized)) == size_of(new("First", Notes, Restated)) == 7
    assert size_of(new("Own", Notes, Sized, request_queue_size=9)) == 9
    assert size_of(new("FromLeft", new("A", Sized), one)) == 100
    assert size_of(new("ToRight", one, new("A", Sized))) == 1
    assert size_of(new("Last", TCPServer, Notes)) is None


def test_override_is_converted_and_takes_the_place_of_a_factory():
    """A default goes through the converter, like what is assigned; a function stays one."""

    class Small(TCPServer):
        limits: Limits = attrs.field(factory=lambda: Limits(requests=5))

    for kind in (Small, new("Smaller", limits=Limits(requests=5))):
        for one in (kind, new("Child", kind)):
            assert one(ADDRESS, Upper).limits == Limits(requests=5)
    for handler in (Upper, hold):
        assert new("Server", RequestHandlerClass=handler)(ADDRESS).RequestHandlerClass is handler
    witness, server = Witness(), TCPServer(ADDRESS, Upper)
    assert new("Watched", observers=[witness])(ADDRESS, Upper).observers == (witness,)
    server.observers = [witness]
    assert server.observers == (witness,)


def test_override_that_is_refused():
    """A wrong default is told of when the class is made, by its name, of a mix-in, too.

    So is a class-level address, which would hide the bound one, and a field without a type.
    """
    says = "request_queue_size must be a whole number"
    for annotation in ({}, {"request_queue_size": "int | None"}):
        refuses(says, kind=ValueError, request_queue_size=-1, __annotations__=annotation)
        refuses(says, request_queue_size="5", __annotations__=annotation)
    refuses(says, new("MixIn", object, request_queue_size=-1), TCPServer, kind=ValueError)
    there = {"server_address": ADDRESS}
    refuses(r"Wrong\.server_address cannot be a class attribute", **there)
    refuses("server_address", new("There", object, **there), TCPServer)
    field = attrs.field(default=7)
    refuses("request_queue_size is a field: it needs an annotation", request_queue_size=field)


def test_override_beside_what_is_no_field():
    """Other names stay plain class attributes; a `ClassVar` is no field.

    A restated field may bring its own validator, which then counts alone.
    """

    class Counted(Notes, TCPServer):
        made: ClassVar[int] = 0

    class Named(TCPServer):
        request_queue_size: Any = attrs.field(default=2, validator=attrs.validators.in_([2, "few"]))

    assert Counted(ADDRESS, Upper).note == "mixed in"
    assert not {"note", "made"} & set(attrs.fields_dict(Counted))
    with pytest.raises(TypeError, match="made"):
        Counted(ADDRESS, Upper, made=1)
    assert (size_of(Named), size_of(Named, request_queue_size="few")) == (2, "few")
    with pytest.raises(ValueError, match="must be in"):
        size_of(Named, request_queue_size=3)


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


class Range(TCPServer):
    low: int = attrs.field(default=1)
    high: int = attrs.field(default=2)

    @low.validator
    def _ordered(self, field, value):
        if value > self.high:
            raise ValueError("low must not be above high")


class Assigned(Range):
    def __init__(self, *arguments, low, **fields):
        self.low = low
        super().__init__(*arguments, **fields)


def test_new_field_is_converted_once_and_validated_when_all_are_set():
    """A validator sees the other fields, in whatever order, and whichever way they have come."""
    server = Doubled(ADDRESS, Upper)
    assert server.doubled == 2
    server.doubled = 3
    assert server.doubled == server.evolve().doubled == 6
    assert server.evolve(doubled=1).doubled == 2
    server = Range(ADDRESS, Upper)
    for changes in ({"low": 5, "high": 6}, {"high": 6, "low": 5}):
        for build in (server.evolve, *(partial(it, ADDRESS, Upper) for it in (Range, Assigned))):
            assert build(**changes).low == 5
            with pytest.raises(ValueError, match="above high"):
                build(low=5)


def test_own_init_has_the_classic_names():
    """Two positional arguments with classic names; what is assigned afterwards is validated."""

    class Classic(TCPServer):
        def __init__(self, server_address, RequestHandlerClass):
            super().__init__(server_address, RequestHandlerClass)
            self.timeout = server_address[1]

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
    """What is assigned before the base ``__init__`` is kept, and the last is converted once.

    An argument wins over it, and it wins over a class body. It is validated by its name.
    """
    witness = Witness()
    early = {"timeout": 5, "request_queue_size": 7, "allow_reuse_address": False, "doubled": 3}
    early |= {"observers": [witness], "made": 4}

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
    early = {"timeout": 5, "request_queue_size": 7, "server_address": ("early", 1)}
    server = Early(ADDRESS, Upper, early=early, timeout=6)
    found = (server.timeout, server.request_queue_size, server.server_address)
    assert found == (6, 7, ADDRESS)
    assert size_of(Early, early={}) == 100
    server = Early(early={"server_address": ADDRESS, "RequestHandlerClass": Upper})
    assert (server.server_address, server.RequestHandlerClass) == (ADDRESS, Upper)
    for name, value, kind in (("timeout", -1, ValueError), ("limits", 5, TypeError)):
        with pytest.raises(kind, match=rf"Early\.{name} must be"):
            Early(ADDRESS, Upper, early={name: value})


def test_own_init_beside_mix_ins():
    """A plain mix-in may assign before, in whatever order; each base keeps what one before set."""

    def init(self, *arguments, **fields):
        self.daemon_threads, self.max_threads = True, 3
        super(threads, self).__init__(*arguments, **fields)

    def init_both(self):
        TCPServer.__init__(self, ADDRESS, lambda *_: None, timeout=5)
        ThreadingMixIn.__init__(self, max_threads=3)

    threads = new("Threads", object, __init__=init)
    for bases in ((threads, ThreadingMixIn, TCPServer), (threads, TCPServer, ThreadingMixIn)):
        server = new("Mixed", *bases)(ADDRESS, lambda *_: None).evolve()
        assert (server.daemon_threads, server.max_threads) == (True, 3)
    server = new("Both", ThreadingMixIn, TCPServer, __init__=init_both)()
    assert (server.timeout, server.max_threads) == (5, 3)


@pytest.mark.parametrize("way", [way for way in COPIES if way != "attrs.evolve"])
def test_own_init_keeps_fields_and_survives_copies(way):
    """One of its own does not hinder fields; a copy has them, and is validated, without a call."""
    louder = new("Louder", Early, volume=11, __annotations__={"volume": int})
    assert louder(ADDRESS, Upper, early={}, volume=12).volume == 12
    server = Early(ADDRESS, Upper, early={"timeout": 5, "doubled": 3, "database": "postgres"})
    twin = COPIES[way](server)
    assert (twin.timeout, twin.doubled, twin.database) == (5, 6, "postgres")
    twin.doubled = 5
    assert twin.doubled == 10
    with pytest.raises(ValueError, match="timeout must be"):
        twin.timeout = -1


def test_misspelt_field():
    """UX-06: what is no field is named, with what may have been meant, and what there is."""
    for given, says in (
        ("time_out", "TCPServer has no field time_out (did you mean timeout or timeouts?). It "),
        ("adress_family", "has no field adress_family (did you mean address_family?)"),
        ("requestHandlerClass", "(did you mean RequestHandlerClass?)"),
        ("idle", "idle (it is one of Timeouts: timeouts=Timeouts(idle=...))"),
        ("requests", "requests (it is one of Limits: limits=Limits(requests=...))"),
        ("xyz time_out", "field time_out (did you mean timeout or timeouts?); xyz. It has"),
    ):
        with pytest.raises(TypeError) as caught:
            TCPServer(ADDRESS, Upper, **dict.fromkeys(given.split(), 5))
        message = str(caught.value)
        assert says in message
        assert message.endswith(", socket_options, ssl_context, timeout, timeouts")
        assert "attrs" not in message


def test_building_and_entering_wrongly():
    """UX-06: what is missing is named, and how to give it; so is what to enter it with.

    LC-01: building never binds; whoever asks for it learns what does.
    """
    for kind in (TCPServer, UnixStreamServer, Sized):
        build = partial(kind, ADDRESS, Upper)
        for wrong in (partial(build, True), partial(build, bind_and_activate=False)):
            with pytest.raises(TypeError, match=rf"{kind.__name__}.*bind_and_activate.*`async wi"):
                wrong()
    for kind, arguments, missing, how in (
        (TCPServer, (), "server_address and RequestHandlerClass", ""),
        (TCPServer, (ADDRESS,), "RequestHandlerClass", ""),
        (Greeting, (ADDRESS, Upper), "count", ", count=..."),
    ):
        with pytest.raises(TypeError) as caught:
            kind(*arguments)
        name = kind.__name__
        build = f"build it as {name}(server_address, RequestHandlerClass{how})"
        assert str(caught.value) == f"{name} needs {missing}: {build}"
    with pytest.raises(TypeError, match="TCPServer got RequestHandlerClass twice"):
        TCPServer(ADDRESS, Upper, RequestHandlerClass=Upper)
    with pytest.raises(TypeError, match="a TCPServer needs `async with`, not `with`"):
        with TCPServer(ADDRESS, Upper):
            pass


def test_bases_that_are_refused():
    """Nobody's handlers run in threads and in processes, and socketserver's have no effect here."""
    far, down = new("Far", trioserver.ThreadingTCPServer), new("Down", trioserver.ForkingMixIn)
    for bases in (
        (ThreadingMixIn, ProcessMixIn, TCPServer),
        (ProcessMixIn, ThreadingMixIn, TCPServer),
        (TCPServer, ThreadingMixIn, trioserver.ForkingMixIn),
        (far, down),
    ):
        refuses("Wrong derives from both ThreadingMixIn and ProcessMixIn", *bases)
    for bases, name in (
        ((socketserver.ThreadingMixIn, TCPServer), "ThreadingMixIn"),
        ((TCPServer, socketserver.ThreadingMixIn), "ThreadingMixIn"),
        ((ThreadingMixIn, http.server.HTTPServer), "TCPServer"),
    ):
        refuses(rf"socketserver\.{name}, .*: use trioserver\.{name}", *bases)


VALUES = (
    {"server_address": MEMORY, "RequestHandlerClass": Upper, "address_family": None}
    | {"timeout": 1, "timeouts": trioserver.Timeouts(), "limits": Limits(), "observers": ()}
    | {"propagate_errors": True, "allow_reuse_address": True, "allow_reuse_port": False}
    | {"socket_options": (), "request_queue_size": 5, "count": 2, "names": []}
)


async def test_assignment_while_bound():
    """LC-01: a bound server is what it is: every field refuses in one line, and takes it after.

    Then it takes what it would take when building, and keeps its value otherwise. A bound server
    cannot be built again. What is not a field is the user's own, bound or not.
    """
    server = new("InMemory", MemoryServer, Greeting)(MEMORY, Upper, count=1)
    server.database = "one"
    async with server:
        before = configuration(server)
        for name, value in VALUES.items():
            with pytest.raises(RuntimeError, match=f".*{name}.* while the server is bound") as it:
                setattr(server, name, value)
            assert "cannot be assigned" in str(it.value)
            assert "\n" not in str(it.value)
        with pytest.raises(RuntimeError, match="this InMemory is bound"):
            server.__init__(MEMORY, Upper, count=2)
        assert configuration(server) == before
        server.cache = server.database = "two"
        del server.database
    for name, value in VALUES.items():
        setattr(server, name, value)
    before = configuration(server)
    for name, value in {"request_queue_size": -1, "limits": None, "server_address": 5}.items():
        with pytest.raises((ValueError, TypeError), match=rf"InMemory\.{name} must be"):
            setattr(server, name, value)
    assert configuration(server) == before
    assert (hasattr(server, "database"), server.cache) == (False, "two")


def test_evolve():
    """A copy with other values, by attrs, too; what building refuses changes nothing.

    A server is a thing, not a value.
    """
    server, witness = Greeting(ADDRESS, Upper, count=1), Witness()
    server.database = "postgres"
    for evolve in (Greeting.evolve, attrs.evolve):
        twin = evolve(server, greeting="hi", server_address=MEMORY, observers=[witness])
        assert type(twin) is Greeting
        found = (twin.greeting, twin.server_address, twin.count, twin.observers)
        assert found == ("hi", MEMORY, 1, (witness,))
        found = (server.greeting, server.server_address, server.observers)
        assert found == ("hello", ADDRESS, ())
    assert server.evolve().database == "postgres"
    assert len({server, server.evolve()}) == 2
    with pytest.raises(ValueError, match=r"Greeting\.request_queue_size must be"):
        server.evolve(request_queue_size=-1)
    says = r"no field grating \(did you mean greeting\?\)\. It has .*, greeting, "
    with pytest.raises(TypeError, match=says):
        server.evolve(grating="hi")


@pytest.mark.parametrize("way", COPIES)
async def test_copies(way):
    """LC-01: each is equal, and apart; of a bound server, unbound, with the configured address.

    A shutdown before the first run is the original's alone.
    """
    server = Greeting(ADDRESS, Upper, count=1, limits=Limits(requests=5), timeout=3)
    before = configuration(server)
    server.shutdown()
    with trio.fail_after(10):
        async with server:
            assert server.server_address != ADDRESS
            twin = COPIES[way](server)
            assert configuration(twin) == before
            assert (type(twin), twin.socket, twin.draining) == (Greeting, None, False)
            twin.greeting = "hi"
            assert server.greeting == "hello"
            async with twin.serving():
                assert not twin.draining
                assert twin.server_address[1] != server.server_address[1]


async def test_repr_shows_every_field():
    """As configured, also while bound; what attrs is told to hide is not in logs."""

    class Secret(Greeting):
        password: str = attrs.field(default="swordfish", repr=False)
        token: str = attrs.field(default="1234", repr=lambda value: "*" * len(value))

    server = Secret(ADDRESS, Upper, count=1, greeting="hi")
    shown = repr(server)
    assert "Secret(server_address=('127.0.0.1', 0), RequestHandlerClass=" in shown
    for part in ("greeting='hi'", "count=1", "names=[]", "limits=Limits(requests=1024", "token=**"):
        assert part in shown
    assert "swordfish" not in shown
    async with server:
        assert repr(server) == shown


HOOKS = ["server_bind", "server_activate", "server_close", "service_actions", "verify_request"]
HOOKS += ["process_request", "finish_request", "shutdown_request", "close_request"]
HOOKS += ["handle_error", "handle_timeout"]
ASYNC = [*HOOKS, "serve_forever", "handle_request", "wait_closed"]
PLAIN = ["get_request", "shutdown", "cancel_request", "fileno", "statistics", "snapshot", "evolve"]
PLAIN += ["reload"]


async def coroutine(self, *arguments):
    """An async one."""


async def of_nothing(self):
    """One that takes nothing besides."""


async def yielding(self, *arguments):
    """An async generator, which is neither."""
    yield


def test_colours_of_hooks():
    """EX-10: what may wait is refused in plain, what decides at once as ``async def``.

    The colour counts where it is mixed in, in whatever class it stands, however far down. A static
    or class method is taken, and so are names of one's own.
    """
    for name in ASYNC:
        for method in (lambda self: None, yielding, None, True):
            refuses(rf"Wrong\.{name} must be an `async def`", **{name: method})
    for name in PLAIN:
        for method in (coroutine, yielding, None):
            refuses(rf"Wrong\.{name} must be a plain `def`", **{name: method})
    mix_in = new("MixIn", object, verify_request=lambda self: None)
    refuses(r"Wrong\.verify_request must be an `async def`", mix_in, TCPServer)
    new("Right", TCPServer, mix_in)  # it is never called there
    right = new("Right", handle_error=coroutine)
    refuses(r"Wrong\.handle_error must be an `async def`", right, handle_error=lambda self: None)
    for method in (coroutine, staticmethod(coroutine), classmethod(coroutine)):
        new("Right", **dict.fromkeys(HOOKS, method))
    new("Right", server_bind=of_nothing, handle_timeout=of_nothing, greet=id, refresh=coroutine)


def test_hook_that_is_told_what_it_lacks():
    """EX-10: who wrote ``async def`` is not asked to; wrong parameters are told of, too."""
    for hook, method, says in (
        ("verify_request", yielding, "an `async def` without a `yield`: what may wait"),
        ("get_request", yielding, "a plain `def` without a `yield`: it must not"),
        ("get_request", lambda self: None, r"\(self\) must take \(self, listener\)"),
        ("verify_request", of_nothing, r"\(self\) must take \(self, request, client_address\)"),
        ("shutdown_request", of_nothing, r"\(self\) must take \(self, request\)"),
    ):
        refuses(rf"Wrong\.{hook}.*{says}", **{hook: method})
