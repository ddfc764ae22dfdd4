"""The page that shows a recording: what is in it, and what a browser makes of it."""

import html.parser
import json
import re
import shutil
import subprocess
from urllib.parse import unquote

import pytest
import trio
from test_recorder import run_recorded

from trioserver.monitoring import RecordedEvent, Recorder, Recording, timeline

HOSTILE = [
    "</script><script>document.title = 'broken'</script>",
    "<img src=x onerror=\"document.title = 'broken'\">",
    "<!--<script>",
    "]]>&lt;\u2028\u2029\x00\x1b[31m\u202e",
    "\ud800",
    "@@DATA@@ @@SCRIPT@@ ${document.title = 'broken'} `",
    "'\"; document.title = 'broken'; //",
]


def hostile_recording():
    """A recording in which everything that people can name has a name that means harm."""
    events = []
    for number, name in enumerate(HOSTILE, 1):
        request = {"id": number, "client": name, "mode": "task", "started": 0.0, "addresses": []}
        place = {"parent": None, "nursery": None}
        scope = {"scope": number, "deadline": 5.0, "shield": False, "nursery": None}
        why = {"reason": name, "source": name, "by": name, "by_task": None}
        told = [
            ("task_started", {**place, "name": name, "request": request}),
            ("scope_opened", scope),
            ("scope_cancelled", {"scope": number, **why}),
            ("mark", {"text": name}),
            ("request_finished", {"request": request, "outcome": name, "reason": name}),
            ("blocked", {"seconds": 1, "where": name}),
        ]
        events += [RecordedEvent(float(number), kind, number, facts) for kind, facts in told]
    return Recording(events=tuple(events), started=0.0, exact_from=0.0, ended=9.0)


class Elements(html.parser.HTMLParser):
    """What a page consists of."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_nothing_breaks_out():
    """Whatever things are called, the page has its own elements alone, and the same recording."""
    recording = hostile_recording()
    plain = Recording(events=(), started=0.0, exact_from=0.0, ended=1.0)
    for title in ("plain", *HOSTILE[:3]):
        page = timeline(recording, title=title)
        assert Elements(page).found == Elements(timeline(plain)).found
        [data] = re.findall(r'<script type="application/json" id="recording">(.*?)</script>', page)
        assert Recording.from_json(json.loads(data)) == recording
        assert data.isascii()
        assert not set("<>&") & set(data)


def test_no_recording():
    """What is no recording has no page."""
    with pytest.raises(TypeError, match=r"a Recording was expected, not \{\}"):
        timeline({})


def test_nothing_from_outside():
    """The page asks for nothing, and its policy would not let it; it builds no HTML from texts."""
    page = timeline(hostile_recording())
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    metas = [attributes for tag, attributes in Elements(page).found if tag == "meta"]
    assert metas[1]["content"].startswith(policy)
    assert not [
        attributes for _, attributes in Elements(page).found if {"src", "href"} & {*attributes}
    ]
    script = timeline(Recording(events=(), started=0.0, exact_from=0.0, ended=1.0))
    for word in ("innerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "import("):
        assert word not in script


def test_title():
    """The title is a text, once in the head and once in the heading."""
    page = timeline(hostile_recording(), title="<b>&")
    assert page.count("&lt;b&gt;&amp;") == 2
    assert "@@" not in page.replace("@@DATA@@ @@SCRIPT@@", "")


# In a browser -----------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def in_browser(page, script, folder, width=1280):
    """What a script has put into an object ``told``, run at the end of a page in a browser."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    told = f"""<script>
        const told = {{errors: []}};
        try {{ {script} }} catch (error) {{ told.errors.push(String(error)); }}
        told.title = document.title;
        const shown = document.createElement("pre");
        shown.id = "told";
        shown.textContent = encodeURIComponent(JSON.stringify(told));
        document.body.append(shown);
    </script>"""
    file = folder / "page.html"
    file.write_text(page.replace("</body>", f"{told}</body>"), "utf-8")
    where = [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900"]
    command = [CHROMIUM, *FLAGS, *where, "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True, text=True)
    [text] = re.findall(r'<pre id="told">(.*?)</pre>', done.stdout)
    found = json.loads(unquote(text))
    assert found.pop("errors") == []
    return found


@pytest.mark.slow
def test_hostile_names_in_a_browser(tmp_path):
    """A browser shows them as texts, and runs none of them; all events are in the table."""
    recording = hostile_recording()
    script = """
        told.rows = document.querySelectorAll("#events tr").length;
        told.images = document.querySelectorAll("img").length;
        told.lanes = document.querySelectorAll("#lanes rect.task").length;
        told.unseen = /[\\x00-\\x08\\x1b\\u202e\\u2028]/.test(document.body.innerText);
    """
    assert in_browser(timeline(recording, title="fine"), script, tmp_path) == {
        "title": "fine",
        "rows": len(recording.events),
        "images": 0,
        "lanes": len(HOSTILE),
        "unseen": False,
    }


@pytest.mark.slow
def test_page_shows_the_same_trees(tmp_path):
    """The tree that the page shows after all events of an instant is that of the recording."""
    recording = run_recorded(29)
    script = """
        const model = readModel(JSON.parse(document.getElementById("recording").textContent));
        told.trees = [];
        model.events.forEach((event, number) => {
            const next = model.events[number + 1];
            if (next && next.at === event.at) return;
            told.trees.push([event.at, treeAfter(model, number + 1)]);
        });
    """
    trees = in_browser(timeline(recording), script, tmp_path)["trees"]
    assert len(trees) > 5
    for at, text in trees:
        line_of = re.compile(r"( *)(.*) \((\d+)\)(  \[.*\])?$")
        shown = [line_of.match(line).groups() for line in text.split("\n")]
        tree = recording.tree(at)
        assert [(name, int(number)) for _, name, number, _ in shown] == [
            (task.name, task.id) for task in tree.tasks
        ]
        for (*_, brackets), task in zip(shown, tree.tasks, strict=True):
            is_cancelled = any(scope.cancelled for scope in task.scopes)
            assert ("cancelled" in (brackets or "")) == is_cancelled


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_page_by_keyboard(tmp_path, width):
    """One can step, zoom, move and play by keys, and nothing is wider than the window."""
    script = """
        const box = document.getElementById("lanes");
        const now = () => parseInt(document.getElementById("now").textContent);
        const press = (key, shiftKey = false) =>
            box.dispatchEvent(new KeyboardEvent("keydown", { key, shiftKey, cancelable: true }));
        const grid = () => box.querySelectorAll("svg text.soft")[1].textContent;
        press("Home"); told.first = now();
        press("ArrowRight"); press("ArrowRight"); told.second = now();
        press("ArrowLeft"); told.back = now();
        press("End"); told.last = now();
        const before = grid(); press("+"); press("+"); told.zoomed = grid() !== before;
        press("0"); told.whole = grid() === before;
        press(" "); told.plays = document.getElementById("play").getAttribute("aria-pressed");
        press(" "); told.stops = document.getElementById("play").getAttribute("aria-pressed");
        told.fits = document.documentElement.scrollWidth <= innerWidth;
        told.nameless = [...document.querySelectorAll("button")].filter(
            (button) => !button.getAttribute("aria-label")).length;
    """
    recording = run_recorded(29)
    found = in_browser(timeline(recording, title="keys"), script, tmp_path, width)
    assert found == {
        "title": "keys",
        "first": 0,
        "second": 2,
        "back": 1,
        "last": len(recording.events),
        "zoomed": True,
        "whole": True,
        "plays": "true",
        "stops": "false",
        "fits": True,
        "nameless": 0,
    }


async def test_real_time():
    """A recording of real time has a page, too, whose times count from its beginning."""
    with (recorder := Recorder(scopes=True)):
        await trio.lowlevel.checkpoint()
        recorder.mark("here")
    assert '"here"' in timeline(recorder.recording())
