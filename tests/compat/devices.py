"""Cases: packages that speak with machines and instruments."""

import socket
import socketserver
from functools import partial

import umodbus.client.tcp as modbus
from case import HOST, OURS, PATIENCE, Case, make
from pymodbus.client.sync import ModbusTcpClient, ModbusUdpClient
from pymodbus.datastore import ModbusServerContext, ModbusSlaveContext
from pymodbus.datastore.store import BaseModbusDataBlock
from pymodbus.exceptions import ModbusException
from pymodbus.factory import ServerDecoder
from pymodbus.server import sync as pymodbus
from pymodbus.transaction import ModbusSocketFramer
from pythonosc.dispatcher import Dispatcher
from pythonosc.osc_server import ThreadingOSCUDPServer, _UDPHandler
from pythonosc.osc_tcp_server import ThreadingOSCTCPServer, _TCPHandler1_1
from pythonosc.tcp_client import SimpleTCPClient
from pythonosc.udp_client import SimpleUDPClient
from umodbus.server.tcp import RequestHandler, get_server

import trioserver

# uModbus: numbers are addresses of registers, answers their values. ------------------------


def modbus_server(kind, app):
    server = get_server(kind, (HOST, 0), RequestHandler)

    @server.route(slave_ids=[1], function_codes=[3], addresses=range(0x10000))
    def read(slave_id, function_code, address):
        return app.answer(address)

    return server


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


def our_pymodbus_server(kind, handler, app):
    facts = {"threads": [], "decoder": ServerDecoder(), "framer": ModbusSocketFramer}
    return make(kind, handler, context=registers_of(app), broadcast_enable=False, **facts)


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


OUR_UDP = trioserver.ThreadingUDPServer
CASES = [
    Case(
        "uModbus",
        partial(modbus_server, socketserver.ThreadingTCPServer),
        modbus_client,
        partial(modbus_server, OURS),
        turned_away=(OSError, ValueError),
    ),
    Case(
        "pymodbus TCP",
        lambda app: pymodbus.ModbusTcpServer(registers_of(app), address=(HOST, 0)),
        partial(pymodbus_client, ModbusTcpClient),
        partial(our_pymodbus_server, OURS, pymodbus.ModbusConnectedRequestHandler),
        turned_away=(ModbusException,),
    ),
    Case(
        "pymodbus UDP",
        lambda app: pymodbus.ModbusUdpServer(registers_of(app), address=(HOST, 0)),
        partial(pymodbus_client, ModbusUdpClient),
        partial(our_pymodbus_server, OUR_UDP, pymodbus.ModbusDisconnectedRequestHandler),
        turned_away=(ModbusException,),
        clients_leave=True,
    ),
    Case(
        "python-osc UDP",
        lambda app: ThreadingOSCUDPServer((HOST, 0), osc_dispatcher(app)),
        partial(osc_client, SimpleUDPClient),
        lambda app: make(OUR_UDP, _UDPHandler, dispatcher=osc_dispatcher(app)),
        clients_leave=True,
    ),
    Case(
        "python-osc TCP",
        lambda app: ThreadingOSCTCPServer((HOST, 0), osc_dispatcher(app)),
        partial(osc_client, SimpleTCPClient),
        lambda app: make(OURS, _TCPHandler1_1, dispatcher=osc_dispatcher(app)),
    ),
]
