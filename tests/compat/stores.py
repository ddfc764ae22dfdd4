"""Cases: packages that keep something for others: repositories, databases, files."""

import configparser
import functools
import socketserver
import threading
from contextlib import contextmanager

import fakeredis
import redis
from case import HOST, LARGEST, PATIENCE, App, Case, answer_to
from dulwich.client import TCPGitClient
from dulwich.errors import GitProtocolError, HangupException
from dulwich.objects import Blob, Commit, Tree
from dulwich.repo import MemoryRepo
from dulwich.server import DEFAULT_HANDLERS, Backend, TCPGitRequestHandler, TCPGitServer
from fakeredis._clients._tcp_server import TCPFakeRequestHandler
from impacket import smb3structs
from impacket.nmb import NetBIOSError
from impacket.smb import FILE_READ_DATA
from impacket.smbconnection import SMBConnection
from impacket.smbserver import SMBSERVER, SMBSERVERHandler
from standard_library import LongQueue

import trioserver

# dulwich: fetches of repositories that are made when they are asked for. -------------------


class Repositories(Backend):
    def __init__(self, app):
        self.app = app

    def open_repository(self, path):
        answer = self.app.answer(int(path.strip(b"/")))
        return repository_with(str(answer).encode())


def repository_with(content):
    """A repository whose only commit has ``content`` as its message and its only file."""
    blob = Blob.from_string(content)
    tree = Tree()
    tree.add(b"answer", 0o100644, blob.id)
    commit = Commit()
    commit.tree = tree.id
    commit.author = commit.committer = b"nobody <nobody@localhost>"
    commit.author_time = commit.commit_time = 0
    commit.author_timezone = commit.commit_timezone = 0
    commit.message = content
    repository = MemoryRepo()
    for one in (blob, tree, commit):
        repository.object_store.add_object(one)
    repository.refs[b"refs/heads/master"] = commit.id
    return repository


class GitServer(LongQueue, TCPGitServer):
    # In a fetch the server speaks, and then waits for what the client wants.
    ends_idle_reads = False


def their_git_server(app):
    return GitServer(Repositories(app), HOST, 0)


def our_git_server(app):
    handler = functools.partial(TCPGitRequestHandler, DEFAULT_HANDLERS)
    server = trioserver.ThreadingTCPServer((HOST, 0), handler, ends_idle_reads=False)
    server.backend = Repositories(app)
    return server


@contextmanager
def git_client(address, app):
    host, port = address

    def ask(number):
        mine = MemoryRepo()
        result = TCPGitClient(host, port).fetch(f"/{number}", mine)
        return int(mine[result.refs[b"refs/heads/master"]].message)

    yield ask


# fakeredis: is the application itself. ------------------------------------------------------


class Database(App):
    """What it was asked for stands in the database; its lock holds answers back."""

    def serve(self, fake_server):
        self._server = fake_server

    def asked(self):
        client = fakeredis.FakeStrictRedis(server=self._server)
        return [int(key) for key in client.scan_iter()]

    def hold(self):
        self._server.lock.acquire()

    def wait_inside(self, count):
        pass

    def release(self):
        self._server.lock.release()


def their_redis_server(app):
    server = fakeredis.TcpFakeServer((HOST, 0))
    app.serve(server.fake_server)
    return server


def our_redis_server(app):
    server = trioserver.ThreadingTCPServer((HOST, 0), TCPFakeRequestHandler)
    server.fake_server = fakeredis.FakeServer()
    server.clients = {}
    server._shutdown_event = threading.Event()
    app.serve(server.fake_server)
    return server


@contextmanager
def redis_client(address, app):
    host, port = address
    options = {"retry": None, "socket_timeout": PATIENCE}
    with redis.Redis(host, port, single_connection_client=True, **options) as client:
        yield lambda number: client.incrby(number, 0xFFFF - number)


# impacket: a file on a share, whose lines are the answers. ----------------------------------

LINE = 6
"""Bytes in a line."""


class SMBServer(LongQueue, SMBSERVER):
    pass


def their_smb_server(app):
    lines = (f"{answer_to(number):{LINE - 1}}\n" for number in range(LARGEST + 1))
    (app.folder / "answers").write_text("".join(lines))
    server = SMBServer((HOST, 0), config_parser=smb_configuration(app))
    server.processConfigFile()

    def read(connection_id, smb_server, packet):
        app.answer(smb3structs.SMB2Read(packet["Data"])["Offset"] // LINE)
        return theirs(connection_id, smb_server, packet)

    theirs = server.hookSmb2Command(smb3structs.SMB2_READ, read)
    return server


def smb_configuration(app):
    """What the manual has the server read from a file: one share, for everybody to read."""
    configuration = configparser.ConfigParser()
    configuration["global"] = {
        "server_name": "SERVER",
        "server_os": "UNIX",
        "server_domain": "WORKGROUP",
        "log_file": "None",
        "credentials_file": "",
        "SMB2Support": "True",
    }
    configuration["SHARE"] = {
        "comment": "",
        "read only": "yes",
        "share type": "0",
        "path": str(app.folder),
    }
    return configuration


def our_smb_server(app):
    server = trioserver.ThreadingTCPServer((HOST, 0), SMBSERVERHandler)
    with their_smb_server(app) as theirs:
        server.log = theirs.log
        server.getServerName = theirs.getServerName
        server.addConnection = theirs.addConnection
        server.removeConnection = theirs.removeConnection
        server.processRequest = theirs.processRequest
    return server


@contextmanager
def smb_client(address, app):
    host, port = address
    connection = SMBConnection(host, host, sess_port=port, timeout=PATIENCE)
    try:
        connection.login("", "")
        tree = connection.connectTree("SHARE")
        file = connection.openFile(tree, "answers", desiredAccess=FILE_READ_DATA)
        yield lambda number: int(connection.readFile(tree, file, number * LINE, LINE))
    finally:
        connection.close()


CASES = [
    Case(
        "dulwich",
        their_git_server,
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
]
