"""The commands, and the parser that knows them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import attrs

from . import adopt, check, classic, serve, serving_options, super_server, top
from .options import Option, Parser, complete, unknown_variables
from .program import say


@attrs.frozen
class Command:
    """One command.

    Attributes:
      help: what it does, in a few words.
      description: the same, in a sentence or two.
      main: does it; the exit status.
      groups: its options, by what they are about.
      add_arguments: has a parser know what is no such option.
    """

    help: str
    description: str
    main: Callable[[argparse.Namespace], int]
    groups: Mapping[str, Sequence[Option]] = attrs.field(factory=dict)
    add_arguments: Callable[[Any], None] | None = None

    @property
    def options(self) -> Sequence[Option]:
        """All options that can come from the environment, too."""
        return [option for group in self.groups.values() for option in group]


def _demo(_typed: argparse.Namespace) -> int:
    from . import demo  # noqa: PLC0415  (nobody else pays for it)

    return demo.demo()


_UDP = (Option("--udp", "serve datagrams", is_switch=True),)

COMMANDS: Mapping[str, Command] = {
    "serve": Command(
        "serve a handler, or a server, of your own",
        "Serve a handler, or a server, until SIGTERM or Ctrl-C, which drains it; a second signal"
        " cancels what is left. SIGHUP reloads, SIGUSR1 logs all tasks, SIGUSR2 hands over to new"
        " code.",
        serve.main,
        {"what": serve.OPTIONS, **serving_options.GROUPS},
        serve.add_arguments,
    ),
    "exec": Command(
        "run a program for each connection",
        "Run a program for each connection. Its standard input and output are the client, its"
        " errors go to the log, and TCPREMOTEIP and its like are in its environment. It ends, with"
        " all that it has started, when the client goes or its time is up.",
        super_server.main,
        serving_options.GROUPS,
        super_server.add_arguments,
    ),
    "adopt": Command(
        "serve a server object of socketserver",
        "Serve a server object of the standard library's socketserver, as it is, in threads.",
        adopt.main,
        {"threads": adopt.OPTIONS, **adopt.GROUPS},
        adopt.add_arguments,
    ),
    **{
        name: Command(
            f"serve {name}, as every inetd had it",
            " ".join((service.__doc__ or "").split()),
            partial(classic.main, service),
            {"what": _UDP, **serving_options.GROUPS},
        )
        for name, service in classic.SERVICES.items()
    },
    "check": Command(
        "ask a program whether it is ready",
        "Ask a program that answers health checks (--health) whether it is ready. The status is 0"
        " if it is, and 1 if it is not, or does not answer.",
        check.main,
        add_arguments=check.add_arguments,
    ),
    "top": Command(
        "watch a program from this terminal",
        "Watch a program that has a monitor: its servers, its requests, what is odd. The status is"
        " 1 if nobody is there, or no monitor; once a signal has ended it, 128 and its number.",
        top.main,
        add_arguments=top.add_arguments,
    ),
    "demo": Command(
        "serve, talk and drain, before your eyes",
        "Serve streams and datagrams, over IP and Unix sockets; talk; drain.",
        _demo,
    ),
}


def parser() -> Parser:
    """The parser of the whole command line."""
    whole = Parser(
        prog="trioserver",
        description="Servers on Trio, from the command line. Every option of a command can come"
        " from the environment, too: --grace from TRIOSERVER_GRACE. What is typed wins.",
    )
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    for name, command in COMMANDS.items():
        one = commands.add_parser(name, help=command.help, description=command.description)
        if command.add_arguments is not None:
            command.add_arguments(one)
        for title, options in command.groups.items():
            group = one.add_argument_group(title)
            for option in options:
                option.add_to(group)
        one.set_defaults(chosen=command, parser=one)
    return whole


def parsed(arguments: Sequence[str] | None) -> tuple[Command, argparse.Namespace] | None:
    """The command, and its options, which were typed or are in the environment; None: nothing was.

    The options are values alone, which pickle: each worker has them, too.
    """
    whole = parser()
    typed = whole.parse_args(arguments)
    if not hasattr(typed, "chosen"):
        whole.print_help()
        return None
    chosen, one = typed.chosen, typed.parser
    del typed.chosen, typed.parser
    complete(one, chosen.options, typed)
    everything = (option for command in COMMANDS.values() for option in command.options)
    for name in unknown_variables(everything):
        say(f"warning: {name} is in the environment, and no command has such an option")
    return chosen, typed
