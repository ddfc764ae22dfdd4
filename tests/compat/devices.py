"""Cases: packages that speak with machines and instruments."""

import functools
import socket
import socketserver
from contextlib import contextmanager

import umodbus.client.tcp as modbus
from case import HOST, PATIENCE, Case
from pymodbus.client.sync import ModbusTcpClient, ModbusUdpClient
from pymodbus.datastore import ModbusServerContext, ModbusSlaveContext
from pymodbus.datastore.store import BaseModbusDataBlock
from pymodbus.exceptions import ModbusException
from pymodbus.factory import ServerDecoder
from pymodbus.server.sync import (
    ModbusConnectedRequestHandler,
    ModbusDisconnectedRequestHandler,
    ModbusTcpServer,
    ModbusUdpServer,
)
from pymodbus.transaction import ModbusSocketFramer
from pythonosc.dispatcher import Dispatcher
from pythonosc.osc_server import ThreadingOSCUDPServer, _UDPHandler
from pythonosc.osc_tcp_server import ThreadingOSCTCPServer, _TCPHandler1_1
from pythonosc.tcp_client import SimpleTCPClient
from pythonosc.udp_client import SimpleUDPClient
from standard_library import LongQueue
from umodbus.server.tcp import RequestHandler as ModbusHandler
from umodbus.server.tcp import get_server

import trioserver

# uModbus: numbers are addresses of registers, answers their values. ------------------------


def answer_registers(server, app):
    @server.route(slave_ids=[1], function_codes=[3], addresses=range(0x10000))
    def read(slave_id, function_code, address):
        return app.answer(address)


def their_modbus_server(app):
    server = get_server(socketserver.ThreadingTCPServer, (HOST, 0), ModbusHandler)
    answer_registers(server, app)
    return server


def our_modbus_server(app):
    server = get_server(trioserver.ThreadingTCPServer, (HOST, 0), ModbusHandler)
    answer_registers(server, app)
    return server


@contextmanager
def modbus_client(address, app):
    with socket.create_connection(address, PATIENCE) as connection:

        def ask(number):
            request = modbus.read_holding_registers(1, number, 1)
            (value,) = modbus.send_message(request, connection)
            return value

        yield ask


# pymodbus, of the versions that have synchronous servers. -----------------------------------


class Registers(BaseModbusDataBlock):
    def __init__(self, app):
        self.app = app

    def validate(self, address, count=1):
        return count == 1

    def getValues(self, address, count=1):  # noqa: N802  (theirs)
        return [self.app.answer(address)]


def registers_of(app):
    store = ModbusSlaveContext(hr=Registers(app), zero_mode=True)
    return ModbusServerContext(store, single=True)


class PymodbusTCPServer(LongQueue, ModbusTcpServer):
    pass


def their_pymodbus_server(kind, app):
    return kind(registers_of(app), address=(HOST, 0))


def our_pymodbus_server(kind, handler, app):
    server = kind((HOST, 0), handler)
    server.threads = []
    server.decoder = ServerDecoder()
    server.framer = ModbusSocketFramer
    server.context = registers_of(app)
    server.broadcast_enable = False
    return server


@contextmanager
def pymodbus_client(kind, address, app):
    with kind(*address, timeout=PATIENCE) as client, client.socket:  # not closed for UDP

        def ask(number):
            result = client.read_holding_registers(number, 1, unit=1)
            if result.isError():
                raise result
            (value,) = result.registers
            return value

        yield ask


# python-osc --------------------------------------------------------------------------------


def osc_dispatcher(app):
    dispatcher = Dispatcher()
    dispatcher.map("/ask", lambda path, number: ("/answer", app.answer(number)))
    return dispatcher


def our_osc_server(kind, handler, app):
    server = kind((HOST, 0), handler)
    server.dispatcher = osc_dispatcher(app)
    return server


@contextmanager
def osc_client(kind, address, app):
    with kind(*address) as client:

        def ask(number):
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
        "pymodbus TCP",
        functools.partial(their_pymodbus_server, PymodbusTCPServer),
        functools.partial(pymodbus_client, ModbusTcpClient),
        functools.partial(
            our_pymodbus_server, trioserver.ThreadingTCPServer, ModbusConnectedRequestHandler
        ),
        turned_away=(ModbusException,),
    ),
    Case(
        "pymodbus UDP",
        functools.partial(their_pymodbus_server, ModbusUdpServer),
        functools.partial(pymodbus_client, ModbusUdpClient),
        functools.partial(
            our_pymodbus_server, trioserver.ThreadingUDPServer, ModbusDisconnectedRequestHandler
        ),
        turned_away=(ModbusException,),
        clients_leave=True,
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
