"""Cases: packages that speak with machines and instruments."""

from __future__ import annotations

import functools
import socket
import socketserver
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import umodbus.client.tcp as modbus
from case import HOST, PATIENCE, App, Ask, Case
from pythonosc.dispatcher import Dispatcher
from pythonosc.osc_server import ThreadingOSCUDPServer, _UDPHandler
from pythonosc.osc_tcp_server import ThreadingOSCTCPServer, _TCPHandler1_1
from pythonosc.tcp_client import SimpleTCPClient
from pythonosc.udp_client import SimpleUDPClient
from umodbus.server.tcp import RequestHandler as ModbusHandler
from umodbus.server.tcp import get_server

import trioserver

# uModbus: numbers are addresses of registers, answers their values. ------------------------


def answer_registers(server: Any, app: App) -> None:
    @server.route(slave_ids=[1], function_codes=[3], addresses=range(0x10000))
    def read(slave_id: int, function_code: int, address: int) -> int:
        return app.answer(address)


def their_modbus_server(app: App) -> socketserver.BaseServer:
    server = get_server(socketserver.ThreadingTCPServer, (HOST, 0), ModbusHandler)
    answer_registers(server, app)
    return server


def our_modbus_server(app: App) -> trioserver.BaseServer:
    server = get_server(trioserver.ThreadingTCPServer, (HOST, 0), ModbusHandler)
    answer_registers(server, app)
    return server


@contextmanager
def modbus_client(address: Any, app: App) -> Iterator[Ask]:
    with socket.create_connection(address, PATIENCE) as connection:

        def ask(number: int) -> int:
            request = modbus.read_holding_registers(1, number, 1)
            (value,) = modbus.send_message(request, connection)
            return value

        yield ask


# python-osc --------------------------------------------------------------------------------


def osc_dispatcher(app: App) -> Dispatcher:
    dispatcher = Dispatcher()
    dispatcher.map("/ask", lambda path, number: ("/answer", app.answer(number)))
    return dispatcher


def our_osc_server(kind: Any, handler: Any, app: App) -> trioserver.BaseServer:
    server = kind((HOST, 0), handler)
    server.dispatcher = osc_dispatcher(app)
    return server


@contextmanager
def osc_client(kind: Any, address: Any, app: App) -> Iterator[Ask]:
    with kind(*address) as client:

        def ask(number: int) -> int:
            client.send_message("/ask", number)
            message = next(client.get_messages(PATIENCE), None)
            if message is None:
                raise ConnectionResetError("no reply")
            (answer,) = message.params
            return answer

        yield ask


CASES = [
    Case(
        "uModbus",
        their_modbus_server,
        modbus_client,
        our_modbus_server,
        turned_away=(OSError, ValueError),
    ),
    Case(
        "python-osc UDP",
        lambda app: ThreadingOSCUDPServer((HOST, 0), osc_dispatcher(app)),
        functools.partial(osc_client, SimpleUDPClient),
        functools.partial(our_osc_server, trioserver.ThreadingUDPServer, _UDPHandler),
        clients_leave=True,
    ),
    Case(
        "python-osc TCP",
        lambda app: ThreadingOSCTCPServer((HOST, 0), osc_dispatcher(app)),
        functools.partial(osc_client, SimpleTCPClient),
        functools.partial(our_osc_server, trioserver.ThreadingTCPServer, _TCPHandler1_1),
    ),
]
