"""Make the pictures of the views that the docs show, so that nobody has to remember to.

    python tests/tools/pictures.py [FOLDER]

Writes a PNG for each view, made by a real Chromium of a real program, and beside it the text that
can be seen in it, without what is never the same twice. tests/browser compares these texts.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
import trio.testing
from playwright.sync_api import Browser, sync_playwright

import trioserver
from trioserver.monitoring import Recorder, as_html, task_tree, timeline
from trioserver.testing import MemoryServer

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
DESK, PHONE = (1100, 700), (390, 700)

LINES = (b"work\n", b"hold\n", b"hello\n", b"")


@contextmanager
def busy() -> Iterator[str]:
    """The address of the monitor of a program that is busy."""
    command = [sys.executable, "-u", str(ROOT / "examples" / "monitoring" / "busy.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline() + process.stdout.readline()
            port = re.search(r"', (\d+)\)", said)
            url = re.search(r"http://\S+", said)
            assert port
            assert url
            clients = [socket.create_connection(("127.0.0.1", int(port[1]))) for _ in LINES]
            for client, line in zip(clients, LINES, strict=True):
                client.sendall(line)
            yield url[0]
            for client in clients:
                client.close()
        finally:
            process.kill()


async def lesson() -> tuple[str, str]:
    """A timeline, and a document, of a drain under a virtual clock."""

    class Visit(trioserver.BaseRequestHandler):
        async def handle(self) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep, 3, name="a child")
                with trio.move_on_after(2):
                    await trio.sleep_forever()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 4):
                await trio.sleep_forever()
            await trio.sleep_forever()

    recorder = Recorder(scopes=True)
    with recorder:
        server = MemoryServer(("memory", 1), Visit, observers=(recorder,))
        async with server.serving(grace=5):
            for _ in range(2):
                await server.connect()
                await trio.sleep(0.8)  # so that nothing happens at the same time
            document = as_html([server.snapshot(), task_tree(stacks=False)], title="A server")
            recorder.mark("a drain begins")
            server.shutdown(5)
            await server.wait_closed()
    return timeline(recorder.recording(), title="A drain"), document


def shown(text: str) -> str:
    """A text without what is never the same twice: times, ports, process ids."""
    text = re.sub(r"process \d+", "process N", text)
    text = re.sub(r"\w+\.lesson", "lesson", text)
    text = re.sub(r"\d+/\d+ .*|\d+ events", "N", text)  # as the tasks happen to take turns
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:N", text)
    text = re.sub(r"\b\d+(?::\d+)*(?:\.\d+)? s\b|\b\d\d:\d\d(?: left)?", "T", text)
    return "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip()) + "\n"


def take(
    browser: Browser, folder: Path, name: str, url: str, size: tuple[int, int], scheme: str
) -> None:
    """Take one picture, and write what can be read in it."""
    width, height = size
    page = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page.goto(url)
    if url.startswith("http"):
        page.locator("#tree .kind-task").first.wait_for()
        page.wait_for_timeout(1500)  # so that bars have begun to shrink
    page.screenshot(path=folder / f"{name}.png")
    (folder / f"{name}.txt").write_text(shown(page.locator("main, body").first.inner_text()))
    page.close()


def make(folder: Path) -> None:
    """Make all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    clock = trio.testing.MockClock(autojump_threshold=0)
    drain, document = trio.run(lesson, clock=clock)
    with sync_playwright() as playwright, busy() as url:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        take(browser, folder, "monitor", url, DESK, "light")
        take(browser, folder, "monitor-phone", url, PHONE, "dark")
        for name, text in (("timeline", drain), ("document", document)):
            file = folder / f"{name}.html"
            file.write_text(text, "utf-8")
            take(browser, folder, name, file.as_uri(), DESK, "light")
            file.unlink()
        browser.close()


if __name__ == "__main__":
    began = time.monotonic()
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURES)
    print(f"made in {time.monotonic() - began:.0f} s")
