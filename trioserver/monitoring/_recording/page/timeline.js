// What people do: zoom, move, step and play.

const MOST_ROWS = 2000;

function main() {
  const byId = (id) => document.getElementById(id);
  const model = readModel(JSON.parse(byId("recording").textContent));
  model.format = (at) => (at - model.start).toFixed(3);
  const least = 1e-6;
  const span = Math.max(model.end - model.start, 1e-3);
  // A little more than the whole, so that what is at the end is seen.
  const whole = { from: model.start - span * 0.01, to: model.start + span * 1.04 };
  const view = { ...whole, now: model.start, box: byId("lanes"), count: 0, timer: null };
  const rows = fillTable(model, byId);
  const dropped = model.dropped ? `, after ${model.dropped} that were dropped` : "";
  byId("summary").textContent =
    `${model.format(model.end)} s, ${model.tasks.size} tasks, ${model.events.length} events${dropped}`;

  function show() {
    draw(view, model);
    const event = model.events[view.count - 1];
    const whose = event && event.task !== null ? `task ${event.task}: ` : "";
    byId("now").textContent = event
      ? `${view.count}/${model.events.length}  ${model.format(view.now)} s  ${whose}${inWords(event)}`
      : `0/${model.events.length}  ${model.format(view.now)} s`;
    byId("tree").textContent = treeAfter(model, view.count);
  }

  function goTo(count) {
    rows.get(view.count)?.classList.remove("chosen");
    view.count = Math.min(Math.max(count, 0), model.events.length);
    rows.get(view.count)?.classList.add("chosen");
    view.now = view.count ? model.events[view.count - 1].at : model.start;
    const width = view.to - view.from;
    if (view.now < view.from || view.now > view.to) look(view.now - width / 2, view.now + width / 2);
    show();
  }

  function goToInstant(at) {
    let [low, high] = [0, model.events.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (model.events[middle].at <= at) low = middle + 1;
      else high = middle;
    }
    goTo(low);
  }

  function look(from, to) {
    const width = Math.min(Math.max(to - from, least), whole.to - whole.from);
    const left = Math.min(Math.max(from, whole.from), whole.to - width);
    Object.assign(view, { from: left, to: left + width });
  }

  function zoom(factor, around = view.now) {
    const about = Math.min(Math.max(around, view.from), view.to);
    look(about - (about - view.from) * factor, about + (view.to - about) * factor);
    show();
  }

  function move(share) {
    const by = (view.to - view.from) * share;
    look(view.from + by, view.to + by);
    show();
  }

  function play(isOn = view.timer === null) {
    clearInterval(view.timer);
    view.timer = null;
    if (isOn) {
      if (view.count === model.events.length) goTo(0);
      view.timer = setInterval(() => {
        goTo(view.count + 1);
        if (view.count === model.events.length) play(false);
      }, 400);
    }
    byId("play").setAttribute("aria-pressed", String(isOn));
    byId("play").textContent = isOn ? "stop" : "play";
    byId("play").setAttribute("aria-label", isOn ? "Stop" : "Play");
  }

  const actions = {
    first: () => goTo(0),
    previous: () => goTo(view.count - 1),
    play: () => play(),
    next: () => goTo(view.count + 1),
    last: () => goTo(model.events.length),
    closer: () => zoom(0.5),
    wider: () => zoom(2),
    whole: () => { look(whole.from, whole.to); show(); },
  };
  for (const [name, action] of Object.entries(actions)) byId(name).addEventListener("click", action);

  const keys = { ArrowLeft: "previous", ArrowRight: "next", Home: "first", End: "last",
                 "+": "closer", "=": "closer", "-": "wider", 0: "whole", " ": "play" };
  view.box.addEventListener("keydown", (pressed) => {
    const name = keys[pressed.key];
    if (!name || pressed.ctrlKey || pressed.altKey || pressed.metaKey) return;
    pressed.preventDefault();
    if (pressed.shiftKey && name === "previous") move(-0.2);
    else if (pressed.shiftKey && name === "next") move(0.2);
    else actions[name]();
  });
  view.box.addEventListener("wheel", (turned) => {
    if (!turned.ctrlKey && !turned.shiftKey) return; // the lanes scroll, as all else does
    turned.preventDefault();
    if (turned.ctrlKey) zoom(turned.deltaY > 0 ? 1.25 : 0.8, instantAt(turned));
    else move(Math.sign(turned.deltaY || turned.deltaX) * 0.1);
  }, { passive: false });

  function instantAt(pointed) {
    return view.instantOf(pointed.clientX - view.box.getBoundingClientRect().left);
  }

  let grip = null;
  view.box.addEventListener("pointerdown", (pressed) => {
    grip = { x: pressed.clientX, from: view.from, to: view.to, hasMoved: false };
  });
  view.box.addEventListener("pointermove", (moved) => {
    if (!grip || !moved.buttons || Math.abs(moved.clientX - grip.x) < 4) return;
    grip.hasMoved = true;
    const by = ((grip.x - moved.clientX) / view.box.clientWidth) * (grip.to - grip.from);
    look(grip.from + by, grip.to + by);
    show();
  });
  view.box.addEventListener("pointerup", (released) => {
    if (grip && !grip.hasMoved) goToInstant(instantAt(released));
    grip = null;
  });
  window.addEventListener("resize", show);
  byId("events").addEventListener("click", (clicked) => {
    const row = clicked.target.closest("tr");
    if (row) goTo(Number(row.dataset.count));
  });
  goTo(model.events.length);
}

function fillTable(model, byId) {
  const rows = new Map();
  const shown = model.events.slice(-MOST_ROWS);
  const before = model.events.length - shown.length;
  shown.forEach((event, place) => {
    const row = document.createElement("tr");
    row.dataset.count = before + place + 1;
    const task = event.task === null ? "" : String(event.task);
    for (const text of [model.format(event.at), task, event.kind, inWords(event)]) {
      const cell = document.createElement("td");
      cell.textContent = text;
      row.append(cell);
    }
    rows.set(before + place + 1, row);
  });
  byId("events").append(...rows.values());
  if (before) byId("more").textContent = `${before} earlier events are not in the table.`;
  return rows;
}

main();
