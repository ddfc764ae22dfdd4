"""Cases: packages that keep something for others: repositories, databases, files."""

import configparser
import socketserver
import threading
from contextlib import closing
from functools import partial

import fakeredis
import redis
from case import HOST, LARGEST, OURS, PATIENCE, App, Case, anew, answer_to, make
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

# dulwich: fetches of repositories that are made when they are asked for. -------------------

MASTER = b"refs/heads/master"


class Repositories(Backend):
    def __init__(self, app):
        self.app = app

    def open_repository(self, path):
        """One whose only commit has the answer as its message and its only file."""
        answer = b"%d" % self.app.answer(int(path.strip(b"/")))
        blob, tree, commit = Blob.from_string(answer), Tree(), Commit()
        tree.add(b"answer", 0o100644, blob.id)
        commit.tree, commit.message = tree.id, answer
        commit.author = commit.committer = b"nobody <nobody@localhost>"
        commit.author_time = commit.commit_time = 0
        commit.author_timezone = commit.commit_timezone = 0
        return MemoryRepo.init_bare([blob, tree, commit], {MASTER: commit.id})


class GitServer(TCPGitServer):
    # In a fetch the server speaks, and then waits for what the client wants.
    ends_idle_reads = False


def our_git_server(app):
    handler = partial(TCPGitRequestHandler, DEFAULT_HANDLERS)
    return make(partial(OURS, ends_idle_reads=False), handler, backend=Repositories(app))


@anew
def git_client(address, app, number):
    mine = MemoryRepo()
    result = TCPGitClient(*address).fetch(f"/{number}", mine)
    return int(mine[result.refs[MASTER]].message)


# fakeredis: is the application itself. ------------------------------------------------------


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


# impacket: a file on a share, whose lines are the answers. ----------------------------------

LINE = 6
"""Bytes in a line."""


def their_smb_server(app):
    lines = (f"{answer_to(number):{LINE - 1}}\n" for number in range(LARGEST + 1))
    (app.folder / "answers").write_text("".join(lines))
    configuration = configparser.ConfigParser()
    # What the manual has the server read from a file: one share, for everybody to read.
    configuration["global"] = {
        "server_name": "SERVER",
        "server_os": "UNIX",
        "server_domain": "WORKGROUP",
        "log_file": "None",
        "credentials_file": "",
        "SMB2Support": "True",
    }
    share = {"comment": "", "read only": "yes", "share type": "0", "path": str(app.folder)}
    configuration["SHARE"] = share
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


CASES = [
    Case(
        "dulwich",
        lambda app: GitServer(Repositories(app), HOST, 0),
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
