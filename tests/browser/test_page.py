"""The page of the monitor in a real browser: it shows what is so, and can be used by keys alone."""

import json
import re
import socket
import urllib.request

from playwright.sync_api import expect


def talk(program, line=b"work\n"):
    """A client that has said something."""
    client = socket.create_connection(("127.0.0.1", program.server))
    client.sendall(line)
    return client


def rows(page):
    """The rows of the tree, as their texts."""
    return page.locator("#tree li:not(.gone)").all_inner_texts()


def test_it_shows_the_snapshot(page, program):
    """It shows what the monitor says, with the child tasks, and asks nobody else for anything."""
    with talk(program), talk(program):
        page.goto(program.url)
        expect(page.locator("#tree .kind-request")).to_have_count(2)
        expect(page.locator("#tree .kind-task")).to_have_count(2)
        url = f"{program.url}request?server=0&id=1"
        with urllib.request.urlopen(url) as answer:  # noqa: S310  (on this machine)
            told = json.load(answer)["request"]
        [first] = [row for row in rows(page) if "#1 " in row]
        assert told["client"] in first
        assert told["state"] in first
        expect(page.locator(".server")).to_contain_text("2 of 1024")
    policy = page.request.get(program.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy


def test_names_are_text(page, program):
    """Markup in a name stays text, and what would turn it round is shown."""
    with talk(program):
        page.goto(program.url)
        name = page.locator("#tree .kind-task .name")
        expect(name).to_have_text("<b>bold</b> \\u202etask")
        assert page.locator("#tree b").count() == 0


def test_it_follows_a_drain(page, program):
    """A drain is seen as it happens, and so is the end of the program."""
    with talk(program):
        page.goto(program.url)
        expect(page.locator(".server .badge")).to_have_text("serving")
        program.order("SIGTERM")
        expect(page.locator(".server .badge")).to_have_text("draining")
        expect(page.locator("#tree .kind-listener").first).to_contain_text("not accepting")
    program.order("SIGTERM")
    expect(page.locator("#connection")).to_have_text("not connected: trying again")


def test_it_comes_back(page, start):
    """A server that ends is told, and one that comes again is shown, without a reload."""
    with start() as first:
        page.goto(first.url)
        expect(page.locator("#connection")).to_have_text("connected")
        ports = first.monitor, first.server
    expect(page.locator("#connection")).to_have_class("lost")
    with start(*ports) as second, talk(second):
        expect(page.locator("#connection")).to_have_text("connected", timeout=15_000)
        expect(page.locator("#pid")).to_have_text(f"process {second.process.pid}")
        expect(page.locator("#tree .kind-request")).to_have_count(1)


def test_keys(page, program):
    """Without a mouse: find a request, look at it in detail, close it, search, pause, step back."""
    with talk(program), talk(program, b"shield\n"):
        page.goto(program.url)
        expect(page.locator("#tree .kind-request")).to_have_count(2)
        page.locator("#tree").focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        expect(page.locator("#tree li[aria-selected=true]")).to_contain_text("#1 ")
        page.keyboard.press("Enter")
        expect(page.locator("#detail-text")).to_contain_text("in handle")
        expect(page.locator("#detail-close")).to_be_focused()
        page.keyboard.press("Escape")
        expect(page.locator("#detail")).to_be_hidden()
        expect(page.locator("#tree")).to_be_focused()
        page.keyboard.press("Space")
        expect(page.locator("#pause")).to_have_attribute("aria-pressed", "true")
        shown = rows(page)
        page.keyboard.press("[")
        expect(page.locator("#ago")).to_contain_text("ago")
        page.keyboard.press("]")
        page.keyboard.press("Space")
        expect(page.locator("#pause")).to_have_attribute("aria-pressed", "false")
        assert len(shown) >= 5
        page.keyboard.press("/")
        page.keyboard.type("#2 ")
        expect(page.locator("#tree li.kind-request:not(.gone)")).to_have_count(1)
        page.keyboard.press("Escape")
        expect(page.locator("#tree li.kind-request:not(.gone)")).to_have_count(2)
        page.keyboard.press("?")
        expect(page.locator("#help")).to_be_visible()


def test_bars_shrink(page, program):
    """A deadline is a bar that has less and less left; a shield is named."""
    with talk(program, b"shield\n"):
        page.goto(program.url)
        scope = page.locator("#tree .kind-scope", has_text="shielded")
        expect(scope).to_have_count(1)
        first = re.search(r"(\d+):(\d+)", scope.inner_text())
        expect(scope).not_to_contain_text(first[0])
        width = scope.locator(".left > span").evaluate("it => parseFloat(it.style.width)")
        assert 0 < width < 100


def test_order(page, program):
    """A request can be cancelled where that is allowed, after a question."""
    with talk(program) as client:
        page.goto(program.url)
        page.locator("#tree .kind-request").click()
        page.once("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Cancel this request").click()
        assert client.recv(1) == b""
        expect(page.locator("#detail-facts")).to_contain_text("ended")


def test_on_a_phone(chromium, program):
    """At a phone's width nothing is cut off, by light and by night; what is there has names."""
    with talk(program):
        for scheme in ("light", "dark"):
            small = chromium.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
            small.goto(program.url)
            expect(small.locator("#tree .kind-request")).to_have_count(1)
            assert small.evaluate("document.documentElement.scrollWidth") == 390
            assert small.get_by_role("tree", name="Nurseries").count() == 1
            assert small.get_by_role("treeitem").count() >= 3
            ground = small.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (ground == "rgb(20, 23, 28)") == (scheme == "dark")
            small.close()
