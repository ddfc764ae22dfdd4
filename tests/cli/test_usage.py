"""Wrong arguments: one line that says what was wrong, and what was expected; no traceback."""

import socket
import threading

import pytest
from support.scenes import table

from trioserver.__main__ import main


def ends(arguments, capsys):
    """The status, and the one line that it says."""
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    return status, lines[0]


SERVE = {
    "nothing to serve": ("", "the following arguments are required: MODULE:ATTRIBUTE"),
    "no attribute": ("app", "MODULE:ATTRIBUTE was expected, as in my_module:Handler, not 'app'"),
    "no such module": ("nowhere:X", "cannot use nowhere:X: ModuleNotFoundError: No module named"),
    "a file": ("app.py:Upper", "(a module was expected, as in app:Upper)"),
    "no such attribute": ("app:Y", "cannot use app:Y: AttributeError: module 'app' has no attri"),
    "a module that fails": ("broken:X", "cannot use broken:X: KeyError: 'no such thing'"),
    "no handler": ("app:number", "cannot serve app:number: RequestHandlerClass must be"),
    "a plain handler in tasks": ("app:Blocks", "so its handle() must be an `async def`, not a"),
    "a classic handler in tasks": ("app:Blocking", "; or give --mode thread"),
    "a factory that makes nothing": ("app:make_none --factory", "cannot serve app:make_none: Req"),
    "a server of socketserver": ("app:classic --factory", "see `trioserver adopt`"),
    "a factory that is none": (
        "app:number --factory",
        "cannot use app:number: 'int' object is not",
    ),
    "no address": ("app:Upper -b here", "argument -b/--bind: an address was expected, such as"),
    "no port": ("app:Upper -b :70000", "argument -b/--bind: a port is at most 65535, unlike"),
    "no descriptor": ("app:Upper -b fd://9999", "an open socket was expected at fd://9999"),
    "no such sockets": ("app:Upper -b inherited:web", "inherited:web: no such sockets were passed"),
    "no time": ("app:Upper --grace 5parsecs", "argument --grace: a time was expected, such as"),
    "no time at all": (
        "app:Upper --timeout-idle 0",
        "--timeout-idle must be a number of seconds g",
    ),
    "an abbreviation": ("app:Upper --limit-request 7", "unrecognized arguments: --limit-request 7"),
    "no size": ("app:Upper --limit-line 64k", "argument --limit-line: a number of bytes was expec"),
    "no key": ("app:Upper --tls-cert app.py", "certificate: app.py must have a certificate in PEM"),
    "no number": ("app:Upper --limit-requests x", "argument --limit-requests: a whole number was"),
    "too small": ("app:Upper --limit-requests 0", "--limit-requests must be a whole number of at"),
    "no workers": ("app:Upper --workers 0", "argument --workers: a number of at least 1, or auto"),
    "few requests": ("app:Upper --workers 4 --total-requests 3", "total_requests must be a number"),
    "no mode": ("app:Upper --mode fast", "argument --mode: invalid choice: 'fast' (choose from"),
    "no certificate": (
        "app:Upper --tls-cert nowhere.pem",
        "--tls-cert nowhere.pem: No such file or directory",
    ),
    "a key alone": ("app:Upper --tls-key x", "--tls-cert was expected, too: without it nothing"),
    "no network": ("app:Upper --proxy-protocol me", "ProxyProtocol.trusted must be"),
    "no place for checks": ("app:Upper --health x", "argument --health: an address was expected"),
    "no level": ("app:Upper --log-level loud", "argument --log-level: invalid choice: 'loud'"),
    "no such option": ("app:Upper --fast", "unrecognized arguments: --fast"),
    "a mode for a server": ("app:server --mode thread", "app:server is a server, whose class says"),
    "a place for several": ("app:both -b :0", "app:both are several servers: --bind is for one"),
    "a header for datagrams": ("app:Upper --udp --proxy-protocol unix", "datagrams have no TLS, n"),
    "a backlog for datagrams": ("app:Upper --udp --backlog 5", "datagrams have no TLS, no PROXY"),
    "a path for a TCP server": ("app:server -b unix:x", "TCPServer.server_address must be"),
}


@table(("arguments", "message"), SERVE)
def test_serve(arguments, message, capsys):
    """Status 2, before anything is served."""
    status, said = ends(["serve", *arguments.split()], capsys)
    assert status == 2
    assert message in said
    assert said.startswith(("trioserver: error: ", "trioserver serve: error: "))


@table(
    ("arguments", "message"),
    {
        "no such command": ("frobnicate", "argument COMMAND: invalid choice: 'frobnicate'"),
        "exec of nothing": (
            "exec --",
            "a program was expected, as in: trioserver exec -- tr a-z A-Z",
        ),
        "exec of no program": (
            "exec -- nosuchprogram",
            "the program 'nosuchprogram' was found nowhere",
        ),
        "exec of a text": ("exec ./broken.py", "the program './broken.py' cannot be executed"),
        "adopt of a forking one": ("adopt app:forking", "forks, which a running Trio program must"),
        "adopt with what it has not": (
            "adopt app:classic --limit-line 5",
            "unrecognized arguments",
        ),
        "adopt of nothing": ("adopt", "the following arguments are required: MODULE:FACTORY"),
        "adopt of a number": ("adopt app:number", "cannot use app:number: 'int' object is not"),
        "adopt of no server": (
            "adopt app:make_none",
            "app:make_none must be a server of socketser",
        ),
        "echo with no address": ("echo -b x", "argument -b/--bind: an address was expected"),
        "time with an argument": ("time now", "unrecognized arguments: now"),
        "check of nothing": ("check", "the following arguments are required: ADDRESS"),
        "check of no address": ("check x", "argument ADDRESS: an address was expected"),
        "check with no time": ("check :1 --timeout x", "argument --timeout: a time was expected"),
    },
)
def test_other_commands(arguments, message, capsys):
    """Status 2, and one line, too."""
    status, said = ends(arguments.split(), capsys)
    assert status == 2
    assert message in said


@table(
    ("name", "text", "message"),
    {
        "no time": ("GRACE", "soon", "TRIOSERVER_GRACE: a time was expected, such as"),
        "no mode": ("MODE", "fast", "TRIOSERVER_MODE: one of task, thread, process was expected"),
        "no switch": ("UDP", "maybe", "TRIOSERVER_UDP: 1 or 0 was expected, not 'maybe'"),
        "no address": ("BIND", ":1 here", "TRIOSERVER_BIND: an address was expected"),
    },
)
def test_environment(name, text, message, monkeypatch, capsys):
    """A variable is named as an option is."""
    monkeypatch.setenv(f"TRIOSERVER_{name}", text)
    status, said = ends(["serve", "app:Upper"], capsys)
    assert status == 2
    assert message in said


def test_unknown_variable(monkeypatch, capsys):
    """One that is spelt wrongly is told of; what is for programs that hand over is none."""
    monkeypatch.setenv("TRIOSERVER_LIMT_REQUESTS", "5")
    with pytest.raises(SystemExit):
        main(["serve", "app:Upper", "--no-such-option"])
    assert main(["serve", "app:number"]) == 2
    warning = "warning: TRIOSERVER_LIMT_REQUESTS is in the environment, and no command has such an"
    assert capsys.readouterr().err.count(warning) == 1


@table(
    ("command", "message"),
    {
        "of a server": ("serve app:Upper -b 127.0.0.1:{}", "cannot listen on 127.0.0.1:{}"),
        "of an adopted one": (
            "adopt app:classic",
            "cannot use app:classic: Address already in use",
        ),
    },
)
def test_port_that_is_taken(command, message, monkeypatch, capsys):
    """Status 3, whoever binds it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setenv("APP_PORT", port)
        status, said = ends(command.format(port).split(), capsys)
    assert status == 3
    assert "Address already in use" in said
    assert message.format(port) in said


@pytest.mark.parametrize("command", ["serve", "adopt"])
def test_traceback(command, capsys):
    """Only if one asks for it."""
    assert main([command, "broken:X", "--traceback"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert printed.endswith("trioserver: error: cannot use broken:X: KeyError: 'no such thing'\n")


def test_check_of_nobody(capsys):
    """Nobody there: status 1."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    status, said = ends(["check", f"127.0.0.1:{port}"], capsys)
    assert (status, said) == (1, f"trioserver: error: 127.0.0.1:{port}: Connection refused")


@table(
    ("answer", "why"),
    {
        "another server": (
            b"HTTP/1.1 404 Not Found\r\n\r\n<html>\n<p>no\n",
            "no health checks are answered there, but 'HTTP/1.1 404 Not Found'",
        ),
        "no server of HTTP": (b"220 mail\r\n", "are answered there, but '220 mail'"),
        "one that leaves": (b"", "it has ended the connection without an answer"),
    },
)
def test_check_of_somebody_else(answer, why, capsys):
    """Status 1, and one line, whatever it says."""

    def answer_one():
        with listener.accept()[0] as client:
            client.recv(1000)
            client.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_one)
        thread.start()
        port = listener.getsockname()[1]
        status, said = ends(["check", f"127.0.0.1:{port}"], capsys)
        thread.join()
    assert status == 1
    assert why in said


def test_check_of_somebody_silent(capsys):
    """A program that does not answer in time: status 1."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        status, said = ends(["check", f"127.0.0.1:{port}", "--timeout", "50ms"], capsys)
    assert status == 1
    assert said == f"trioserver: error: 127.0.0.1:{port}: no answer within 0.05 s"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["serve", "--help"], ["exec", "--help"]])
def test_help(arguments, capsys):
    """It is printed, and that is no error."""
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    assert (status or 0) == 0
    assert "usage: trioserver" in capsys.readouterr().out
