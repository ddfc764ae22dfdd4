"""A real browser, and programs whose monitor it shows."""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]

PROGRAM = """
import sys
import trio, trioserver
from trioserver.monitoring import Monitor

class Busy(trioserver.StreamRequestHandler):
    async def handle(self):
        async for line in self.rfile:
            if line == b"shield\\n":
                with trio.move_on_after(600, shield=True):
                    await trio.sleep_forever()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep, 600, name="<b>bold</b> \\u202etask")

async def watch(servers):
    monitor = Monitor(servers, ("127.0.0.1", int(sys.argv[1])), allow_control=True)
    async with trio.open_nursery() as nursery:
        _, port = await nursery.start(monitor.serve)
        print("monitor", port, flush=True)

server = trioserver.TCPServer(("127.0.0.1", int(sys.argv[2])), Busy)
tell = lambda addresses: print("server", addresses[0][1], flush=True)
trioserver.run(server, on_ready=tell, beside=[watch], grace=600)
"""


class Watched:
    """A program with a monitor, and the ports of both."""

    def __init__(self, process):
        self.process = process
        said = process.stdout.readline() + process.stdout.readline()
        self.monitor = int(re.search(r"monitor (\d+)", said)[1])
        self.server = int(re.search(r"server (\d+)", said)[1])
        self.url = f"http://127.0.0.1:{self.monitor}/"

    def order(self, name):
        self.process.send_signal(signal.Signals[name])


@contextmanager
def watched(*ports):
    """The program, until the block is left."""
    command = [sys.executable, "-c", PROGRAM, *map(str, ports or (0, 0))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield Watched(process)
        finally:
            process.kill()


@pytest.fixture
def start():
    """Start such a program."""
    return watched


@pytest.fixture
def program():
    """Such a program."""
    with watched() as started:
        yield started


@pytest.fixture(scope="session")
def chromium():
    """The browser."""
    if CHROMIUM is None:
        assert not os.environ.get("CI"), "CI has to have Debian's package chromium"
        pytest.skip("needs Chromium: Debian's package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """A page at the width of a desk, on which nothing may fail and which asks nobody else."""
    made = chromium.new_page(viewport={"width": 1280, "height": 900})
    made.wrong, made.asked = [], []
    made.on("pageerror", lambda error: made.wrong.append(str(error)))
    made.on("request", lambda request: made.asked.append(request.url))
    yield made
    made.close()
    assert made.wrong == []
    hosts = {url.split("/")[2] for url in made.asked if url.startswith("http")}
    assert {host.partition(":")[0] for host in hosts} <= {"127.0.0.1"}
