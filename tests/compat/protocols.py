"""Cases: packages with a protocol of their own between programs, or for machines."""

import configparser
import http.client
import json
import logging
import socket
import socketserver
import threading
from contextlib import closing, contextmanager, suppress
from functools import partial
from types import SimpleNamespace

import fakeredis
import paramiko
import redis
import umodbus.client.tcp as modbus
import websocket
from case import HOST, LARGEST, OURS, PATIENCE, App, Case, anew, answer_to, kept, make, server_of
from dnslib import QTYPE, RR, TXT, DNSRecord
from dnslib.server import DNSHandler, DNSLogger, DNSServer
from dulwich.client import TCPGitClient
from dulwich.errors import GitProtocolError, HangupException
from dulwich.objects import Blob, Commit, Tree
from dulwich.repo import MemoryRepo
from dulwich.server import DEFAULT_HANDLERS, TCPGitRequestHandler, TCPGitServer
from fakeredis._clients._tcp_server import TCPFakeRequestHandler
from impacket import smb3structs
from impacket.nmb import NetBIOSError
from impacket.smb import FILE_READ_DATA
from impacket.smbconnection import SMBConnection
from impacket.smbserver import SMBSERVER, SMBSERVERHandler
from pylsp.python_lsp import PythonLSPServer, start_tcp_lang_server
from pymodbus.client.sync import ModbusTcpClient, ModbusUdpClient
from pymodbus.datastore import ModbusServerContext, ModbusSlaveContext
from pymodbus.exceptions import ModbusException
from pymodbus.factory import ServerDecoder
from pymodbus.server import sync as pymodbus
from pymodbus.transaction import ModbusSocketFramer
from pythonosc.dispatcher import Dispatcher
from pythonosc.osc_server import ThreadingOSCUDPServer, _UDPHandler
from pythonosc.osc_tcp_server import ThreadingOSCTCPServer, _TCPHandler1_1
from pythonosc.tcp_client import SimpleTCPClient
from pythonosc.udp_client import SimpleUDPClient
from sshtunnel import SSHTunnelForwarder
from umodbus.server.tcp import RequestHandler, get_server
from websocket_server import WebsocketServer

import trioserver

OUR_UDP = trioserver.ThreadingUDPServer


def connected(*address):
    return socket.create_connection(address, PATIENCE)


# dnslib: names that are numbers, text records that are answers; a socket for each exchange.
def resolver(app):
    def resolve(request, handler):
        answer = app.answer(int(request.q.qname.label[0]))
        reply = request.reply()
        reply.add_answer(RR(request.q.qname, QTYPE.TXT, rdata=TXT(str(answer))))
        return reply

    return SimpleNamespace(resolve=resolve)


def dns_case(name, *, tcp):
    @anew
    def client(address, app, number):
        question = DNSRecord.question(str(number), "TXT")
        reply = DNSRecord.parse(question.send(*address, tcp=tcp, timeout=PATIENCE))
        assert reply.header.id == question.header.id
        return int(reply.rr[0].rdata.data[0])

    kind = OURS if tcp else OUR_UDP
    return Case(
        name,
        lambda app: DNSServer(resolver(app), HOST, 0, tcp).server,
        client,
        lambda app: make(kind, DNSHandler, resolver=resolver(app), logger=DNSLogger()),
        clients_leave=not tcp,
    )


# websocket-server
def their_websocket_server(app):
    def received(client, server, message):
        server.send_message(client, str(app.answer(int(message))))

    server = WebsocketServer(HOST, 0)
    server.set_fn_message_received(received)
    return server


@contextmanager
def websocket_of(host, port):
    connection = websocket.create_connection(f"ws://{host}:{port}/", timeout=PATIENCE)
    try:
        yield connection
    finally:
        connection.shutdown()


def ask_websocket(connection, number):
    connection.send(str(number))
    return int(connection.recv())


# python-lsp-server: a command, and a connection for each exchange.
def their_language_server(app):
    class LanguageServer(PythonLSPServer):
        def execute_command(self, command, arguments):
            """The answer, in a thread of their pool."""
            return partial(app.answer, *arguments)

    return server_of(lambda: start_tcp_lang_server(HOST, 0, False, LanguageServer))


def our_language_server(app):
    with their_language_server(app) as theirs:
        return make(OURS, theirs.RequestHandlerClass)


def send(file, message):
    content = json.dumps({"jsonrpc": "2.0", **message}).encode()
    file.write(b"Content-Length: %d\r\n\r\n%s" % (len(content), content))
    file.flush()


def call(file, method, **params):
    send(file, {"id": method, "method": method, "params": params})
    headers = http.client.parse_headers(file)
    if not headers:
        raise ConnectionResetError("no response")
    response = json.loads(file.read(int(headers["Content-Length"])))
    assert response["id"] == method
    return response["result"]


@anew
def language_client(address, app, number):
    with connected(*address) as editor, editor.makefile("rwb") as file:
        call(file, "initialize", rootUri=app.folder.as_uri(), capabilities={})
        answer = call(file, "workspace/executeCommand", command="answer", arguments=[number])
        with suppress(OSError):  # a drain may be sooner
            send(file, {"method": "exit"})
        return answer


# sshtunnel: who connects to it speaks with the application at the other end of SSH.
KEY = paramiko.ECDSAKey.generate()
APPLICATION = ("application", 1)


class Gateway(App, paramiko.ServerInterface):
    """An SSH server for one client; what this one has it connect to answers line by line."""

    def __init__(self, folder):
        super().__init__(folder)
        self._listening = socket.create_server((HOST, 0))
        threading.Thread(target=self._serve, daemon=True).start()

    def forwarder(self, *, threaded):
        """Forwards a port of its own to the application."""
        facts = {"ssh_username": "somebody", "ssh_pkey": KEY, "ssh_host_key": KEY}
        facts |= {"ssh_config_file": None, "allow_agent": False, "host_pkey_directories": []}
        facts |= {"remote_bind_address": APPLICATION, "local_bind_address": (HOST, 0)}
        facts |= {"threaded": threaded, "logger": logging.getLogger("sshtunnel")}
        self._forwarder = SSHTunnelForwarder(self._listening.getsockname(), **facts)
        return self._forwarder

    def close(self):
        self._forwarder._transport.close()

    def get_allowed_auths(self, username):
        return "publickey"

    def check_auth_publickey(self, username, key):
        return paramiko.AUTH_SUCCESSFUL if key == KEY else paramiko.AUTH_FAILED

    def check_channel_direct_tcpip_request(self, number, origin, to):
        return paramiko.OPEN_SUCCEEDED

    def _serve(self):
        with self._listening:
            connection, _ = self._listening.accept()
        with paramiko.Transport(connection) as transport:
            transport.add_server_key(KEY)
            transport.start_server(server=self)
            while channel := transport.accept(PATIENCE):
                threading.Thread(target=self._answer, args=[channel], daemon=True).start()

    def _answer(self, channel):
        # Its client may be gone, and the connection with it, before the channel is closed.
        with suppress(EOFError), channel, channel.makefile() as lines:
            for line in lines:
                channel.sendall(b"%d\n" % self.answer(int(line)))


def their_tunnel(app, *, threaded):
    forwarder = app.forwarder(threaded=threaded)
    forwarder._create_tunnels()
    (server,) = forwarder._server_list
    return server


def our_tunnel(app):
    forwarder = app.forwarder(threaded=True)
    forwarder._connect_to_gateway()
    return make(OURS, forwarder._make_ssh_forward_handler_class(APPLICATION))


def ask_line(connection, number):
    connection.sendall(b"%d\n" % number)
    with connection.makefile("rb") as file:
        line = file.readline()
    if not line:
        raise ConnectionResetError("no answer")
    return int(line)


@anew
def tunnel_client_anew(address, app, number):
    with connected(*address) as connection:
        return ask_line(connection, number)


# dulwich: fetches of repositories that are made when they are asked for.
MASTER = b"refs/heads/master"


def repositories(app):
    def open_repository(path):
        """One whose only commit has the answer as its message and its only file."""
        answer = b"%d" % app.answer(int(path.strip(b"/")))
        blob, tree, commit = Blob.from_string(answer), Tree(), Commit()
        tree.add(b"answer", 0o100644, blob.id)
        commit.tree, commit.message = tree.id, answer
        commit.author = commit.committer = b"nobody <nobody@localhost>"
        commit.author_time = commit.commit_time = 0
        commit.author_timezone = commit.commit_timezone = 0
        return MemoryRepo.init_bare([blob, tree, commit], {MASTER: commit.id})

    return SimpleNamespace(open_repository=open_repository)


class GitServer(TCPGitServer):
    # In a fetch the server speaks, and then waits for what the client wants.
    ends_idle_reads = False


def our_git_server(app):
    handler = partial(TCPGitRequestHandler, DEFAULT_HANDLERS)
    return make(partial(OURS, ends_idle_reads=False), handler, backend=repositories(app))


@anew
def git_client(address, app, number):
    mine = MemoryRepo()
    result = TCPGitClient(*address).fetch(f"/{number}", mine)
    return int(mine[result.refs[MASTER]].message)


# fakeredis: is the application itself.
class Database(App):
    """What it was asked for stands in the database; its lock holds answers back."""

    def asked(self):
        client = fakeredis.FakeStrictRedis(server=self.server)
        return [int(key) for key in client.scan_iter()]

    def hold(self):
        self.server.lock.acquire()

    def wait_inside(self, count):
        pass

    def release(self):
        self.server.lock.release()


def their_redis_server(app):
    server = fakeredis.TcpFakeServer((HOST, 0))
    app.server = server.fake_server
    return server


def our_redis_server(app):
    app.server = fakeredis.FakeServer()
    facts = {"fake_server": app.server, "clients": {}, "_shutdown_event": threading.Event()}
    return make(OURS, TCPFakeRequestHandler, **facts)


def redis_client(address, app):
    options = {"retry": None, "socket_timeout": PATIENCE}
    with redis.Redis(*address, single_connection_client=True, **options) as client:
        yield lambda number: client.incrby(number, answer_to(number))


# impacket: a file on a share, whose lines are the answers.
LINE = 6  # bytes in it


def their_smb_server(app):
    # What the manual has the server read from a file: one share, for everybody to read.
    facts = {"server_name": "SERVER", "server_os": "UNIX", "server_domain": "WORKGROUP"}
    facts |= {"log_file": "None", "credentials_file": "", "SMB2Support": "True"}
    share = {"comment": "", "read only": "yes", "share type": "0", "path": str(app.folder)}
    configuration = configparser.ConfigParser()
    configuration.read_dict({"global": facts, "SHARE": share})
    lines = (f"{answer_to(number):{LINE - 1}}\n" for number in range(LARGEST + 1))
    (app.folder / "answers").write_text("".join(lines))
    server = SMBSERVER((HOST, 0), config_parser=configuration)
    server.processConfigFile()

    def read(connection_id, smb_server, packet):
        app.answer(smb3structs.SMB2Read(packet["Data"])["Offset"] // LINE)
        return theirs(connection_id, smb_server, packet)

    theirs = server.hookSmb2Command(smb3structs.SMB2_READ, read)
    return server


def our_smb_server(app):
    names = ("log", "getServerName", "addConnection", "removeConnection", "processRequest")
    with their_smb_server(app) as theirs:
        return make(OURS, SMBSERVERHandler, **{name: getattr(theirs, name) for name in names})


def smb_client(address, app):
    host, port = address
    with closing(SMBConnection(host, host, sess_port=port, timeout=PATIENCE)) as connection:
        connection.login("", "")
        tree = connection.connectTree("SHARE")
        file = connection.openFile(tree, "answers", desiredAccess=FILE_READ_DATA)
        yield lambda number: int(connection.readFile(tree, file, number * LINE, LINE))


# uModbus: numbers are addresses of registers, answers their values.
def modbus_server(kind, app):
    server = get_server(kind, (HOST, 0), RequestHandler)

    @server.route(slave_ids=[1], function_codes=[3], addresses=range(0x10000))
    def read(slave_id, function_code, address):
        return app.answer(address)

    return server


def ask_modbus(connection, number):
    (value,) = modbus.send_message(modbus.read_holding_registers(1, number, 1), connection)
    return value


# pymodbus, of the versions that have synchronous servers.
def registers_of(app):
    registers = SimpleNamespace(
        validate=lambda address, count: count == 1,
        getValues=lambda address, count: [app.answer(address)],
    )
    return ModbusServerContext(ModbusSlaveContext(hr=registers, zero_mode=True), single=True)


def our_pymodbus_server(kind, handler, app):
    facts = {"threads": [], "decoder": ServerDecoder(), "framer": ModbusSocketFramer}
    return make(kind, handler, context=registers_of(app), broadcast_enable=False, **facts)


def ask_pymodbus(client, number):
    result = client.read_holding_registers(number, 1, unit=1)
    if result.isError():
        raise result
    (value,) = result.registers
    return value


@contextmanager
def over_udp(*address):
    with ModbusUdpClient(*address, timeout=PATIENCE) as client, client.socket:  # else not closed
        yield client


# python-osc
def osc_dispatcher(app):
    dispatcher = Dispatcher()
    dispatcher.map("/ask", lambda path, number: ("/answer", app.answer(number)))
    return dispatcher


def ask_osc(client, number):
    client.send_message("/ask", number)
    message = next(client.get_messages(PATIENCE), None)
    if message is None:
        raise ConnectionResetError("no reply")
    (answer,) = message.params
    return answer


CASES = [
    dns_case("dnslib UDP", tcp=False),
    dns_case("dnslib TCP", tcp=True),
    Case(
        "websocket-server",
        their_websocket_server,
        kept(websocket_of, ask_websocket),
        turned_away=(OSError, websocket.WebSocketException),
    ),
    Case("python-lsp-server", their_language_server, language_client, our_language_server),
    Case(
        "sshtunnel",
        partial(their_tunnel, threaded=True),
        kept(connected, ask_line),
        our_tunnel,
        app=Gateway,
        clients_leave=True,  # it waits with select(), for both of its sides
    ),
    Case(
        "sshtunnel without threads",
        partial(their_tunnel, threaded=False),
        tunnel_client_anew,
        app=Gateway,
    ),
    Case(
        "dulwich",
        lambda app: GitServer(repositories(app), HOST, 0),
        git_client,
        our_git_server,
        turned_away=(OSError, GitProtocolError, HangupException),
    ),
    Case(
        "fakeredis",
        their_redis_server,
        redis_client,
        our_redis_server,
        app=Database,
        turned_away=(redis.ConnectionError,),
        # Its own shutdown() has each handler leave, in the middle of an exchange, too.
        drain=socketserver.BaseServer.shutdown,
        clients_leave=True,
    ),
    Case(
        "impacket",
        their_smb_server,
        smb_client,
        our_smb_server,
        turned_away=(OSError, NetBIOSError),
    ),
    Case(
        "uModbus",
        partial(modbus_server, socketserver.ThreadingTCPServer),
        kept(connected, ask_modbus),
        partial(modbus_server, OURS),
        turned_away=(OSError, ValueError),
    ),
    Case(
        "pymodbus TCP",
        lambda app: pymodbus.ModbusTcpServer(registers_of(app), address=(HOST, 0)),
        kept(partial(ModbusTcpClient, timeout=PATIENCE), ask_pymodbus),
        partial(our_pymodbus_server, OURS, pymodbus.ModbusConnectedRequestHandler),
        turned_away=(ModbusException,),
    ),
    Case(
        "pymodbus UDP",
        lambda app: pymodbus.ModbusUdpServer(registers_of(app), address=(HOST, 0)),
        kept(over_udp, ask_pymodbus),
        partial(our_pymodbus_server, OUR_UDP, pymodbus.ModbusDisconnectedRequestHandler),
        turned_away=(ModbusException,),
        clients_leave=True,
    ),
    Case(
        "python-osc UDP",
        lambda app: ThreadingOSCUDPServer((HOST, 0), osc_dispatcher(app)),
        kept(SimpleUDPClient, ask_osc),
        lambda app: make(OUR_UDP, _UDPHandler, dispatcher=osc_dispatcher(app)),
        clients_leave=True,
    ),
    Case(
        "python-osc TCP",
        lambda app: ThreadingOSCTCPServer((HOST, 0), osc_dispatcher(app)),
        kept(SimpleTCPClient, ask_osc),
        lambda app: make(OURS, _TCPHandler1_1, dispatcher=osc_dispatcher(app)),
    ),
]
