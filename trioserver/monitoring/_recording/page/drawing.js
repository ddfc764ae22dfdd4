// The picture: lanes, bars, arrows and the cursor, as SVG.

const LANE = 20;
const ROW = 12;
const HEAD = 22;
const MOST_LANES = 400;

function draw(view, model) {
  const { box } = view;
  const width = Math.max(box.clientWidth, 200);
  const labels = Math.min(240, width * 0.32);
  const x = (at) => labels + ((at - view.from) / (view.to - view.from)) * (width - labels - 8);
  const all = lanesBetween(model, view.from, view.to);
  const lanes = all.slice(0, MOST_LANES);
  const tops = new Map();
  let top = HEAD;
  for (const { task } of lanes) {
    tops.set(task.number, top);
    top += LANE + ROW * Math.max(0, ...task.scopes.map((scope) => scope.row + 1));
  }
  const height = top + LANE;
  const svg = shape("svg", { width, height, role: "img" });
  svg.append(named("title", `${lanes.length} tasks from ${model.format(view.from)} to ` +
                            `${model.format(view.to)} seconds`));
  const scene = { svg, x, width, labels, height, view, model, tops, right: width - 8 };
  drawGrid(scene);
  for (const lane of lanes) drawTask(scene, lane);
  for (const scope of model.scopes.values()) drawCancellation(scene, scope);
  for (const point of model.points) drawPoint(scene, point);
  if (all.length > lanes.length) {
    label(scene, 4, height - 6, `${all.length - lanes.length} more tasks: zoom in`, "soft");
  }
  drawCursor(scene);
  box.replaceChildren(svg);
  view.x = x;
  view.instantOf = (pixel) =>
    view.from + ((pixel - labels) / (width - labels - 8)) * (view.to - view.from);
}

function shape(kind, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function named(kind, text) {
  const made = shape(kind, {});
  made.textContent = printable(text);
  return made;
}

function label({ svg }, x, y, text, kind = "") {
  const made = shape("text", { x, y, class: kind });
  made.textContent = printable(text);
  svg.append(made);
  return made;
}

// A bar, as far as it is in the picture.
function bar({ svg, x, labels, right }, from, to, y, height, kind, told) {
  const [left, end] = [Math.max(x(from), labels), Math.min(x(to), right)];
  if (end < labels || left > right) return;
  const made = shape("rect", { x: left, y, width: Math.max(end - left, 2), height, rx: 2,
                               class: kind });
  made.append(named("title", told));
  svg.append(made);
}

function isSeen({ x, labels, right }, at) {
  return x(at) >= labels - 1 && x(at) <= right + 1;
}

function drawGrid(scene) {
  const { svg, x, view, model, height, labels, right } = scene;
  const span = view.to - view.from;
  const many = Math.max(2, Math.floor((right - labels) / 90));
  const power = 10 ** Math.floor(Math.log10(span / many));
  const step = [1, 2, 5, 10].map((times) => times * power).find((one) => span / one <= many);
  const first = Math.ceil((view.from - model.start) / step);
  for (let number = first; model.start + number * step <= view.to; number += 1) {
    const at = model.start + number * step;
    svg.append(shape("line", { x1: x(at), x2: x(at), y1: HEAD - 4, y2: height, class: "grid" }));
    const text = label(scene, x(at), 13, `${Number((number * step).toPrecision(8))} s`, "soft");
    text.setAttribute("text-anchor", x(at) > right - 30 ? "end" : "middle");
  }
}

function drawTask(scene, { task, depth }) {
  const { svg, labels, tops, x, right } = scene;
  const top = tops.get(task.number);
  const indent = 4 + Math.min(depth * 10, labels / 2);
  const room = Math.floor((labels - indent) / 7.2);
  const name = task.name.split(".").slice(-2).join(".");
  const text = label(scene, indent, top + 14,
                     name.length > room ? `${name.slice(0, Math.max(room - 1, 1))}…` : name);
  text.append(named("title", `${task.name} (${task.number})`));
  svg.append(shape("line", { x1: 0, x2: right, y1: top, y2: top, class: "grid" }));
  const told = `task ${task.number} ${task.name}`;
  bar(scene, task.from, task.to, top + 4, LANE - 8, "task", told);
  for (const scope of task.scopes) {
    const y = top + LANE + scope.row * ROW;
    const words = [`scope ${scope.number}`, scope.nursery === null ? "" : "of a nursery",
                   scope.shield ? "shielded" : ""].filter(Boolean).join(", ");
    bar(scene, scope.from, scope.to, y, ROW - 3, "scope", words);
    if (typeof scope.deadline !== "number" || scope.deadline <= scope.to) continue;
    const end = Math.min(x(scope.deadline), right);
    if (end > labels) {
      svg.append(shape("line", { x1: Math.max(x(scope.to), labels), x2: end, y1: y + 4, y2: y + 4,
                                 class: "deadline" }));
    }
  }
}

function drawCancellation(scene, scope) {
  const { svg, x, tops } = scene;
  const cancelled = scope.cancelled;
  const top = tops.get(scope.task);
  if (!cancelled || top === undefined || !isSeen(scene, cancelled.at)) return;
  const [at, y] = [x(cancelled.at), top + LANE + scope.row * ROW + 4];
  const cross = shape("path", { d: `M${at - 4} ${y - 4}l8 8m0-8l-8 8`, class: "cancelled" });
  cross.append(named("title", inWords(cancelled)));
  svg.append(cross);
  const from = tops.get(cancelled.facts.by_task);
  if (from !== undefined && cancelled.facts.by_task !== scope.task) {
    const head = y > from + LANE / 2 ? -5 : 5;
    const line = `M${at} ${from + LANE / 2}L${at} ${y}m-4 ${head}l4 ${-head}l4 ${head}`;
    svg.append(shape("path", { d: line, class: "cancelled" }));
  }
  const why = cancelled.facts.reason || cancelled.facts.source;
  label(scene, at + 7, y + 4, why.length > 40 ? `${why.slice(0, 40)}…` : why, "why");
}

function drawPoint(scene, event) {
  const { svg, x, tops, height } = scene;
  if (!isSeen(scene, event.at)) return;
  const [at, top] = [x(event.at), (tops.get(event.task) ?? height - LANE) + LANE / 2];
  const isMark = event.kind === "mark" || event.kind === "blocked";
  const made = isMark
    ? shape("path", { d: `M${at} ${top - 6}l6 6l-6 6l-6-6z`, class: "mark" })
    : shape("circle", { cx: at, cy: top, r: 4, class: "request" });
  made.append(named("title", inWords(event)));
  svg.append(made);
  if (isMark) label(scene, at + 8, top + 4, inWords(event), "mark");
}

function drawCursor({ svg, x, view, height }) {
  const at = x(view.now);
  svg.append(shape("line", { x1: at, x2: at, y1: HEAD - 4, y2: height, class: "cursor" }));
}
