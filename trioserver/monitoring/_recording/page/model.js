// What the recording says: spans of tasks and scopes, points in time, and the state of an instant.

function readModel(recording) {
  const base = recording.base.map(asEvent);
  const events = recording.events.map(asEvent);
  const start = recording.exact_from;
  const model = { start, end: Math.max(recording.ended, start), base, events,
                  dropped: recording.dropped, tasks: new Map(), scopes: new Map(), points: [] };
  for (const event of base) note(model, { ...event, at: Math.max(event.at, start) });
  for (const event of events) note(model, event);
  model.lanes = lanesOf(model);
  return model;
}

function asEvent([at, kind, task, facts]) {
  return { at, kind, task, facts };
}

function note(model, event) {
  const { at, kind, task, facts } = event;
  const scope = model.scopes.get(facts.scope);
  if (kind === "task_started") {
    model.tasks.set(task, { number: task, name: facts.name, parent: facts.parent,
                            nursery: facts.nursery, from: at, to: model.end, scopes: [] });
  } else if (kind === "task_moved" && model.tasks.has(task)) {
    Object.assign(model.tasks.get(task), { parent: facts.parent, nursery: facts.nursery });
  } else if (kind === "task_ended" && model.tasks.has(task)) {
    model.tasks.get(task).to = at;
  } else if (kind === "scope_opened") {
    const opened = { number: facts.scope, task, from: at, to: model.end, deadline: facts.deadline,
                     shield: facts.shield, nursery: facts.nursery, cancelled: null, row: 0 };
    const others = model.tasks.has(task) ? model.tasks.get(task).scopes : [];
    const taken = new Set(others.filter((one) => one.to > at || one.isOpen).map((one) => one.row));
    while (taken.has(opened.row)) opened.row += 1;
    opened.isOpen = true;
    others.push(opened);
    model.scopes.set(facts.scope, opened);
  } else if (kind === "scope_changed" && scope) {
    scope.deadline = facts.deadline;
    scope.shield = facts.shield;
  } else if (kind === "scope_closed" && scope) {
    scope.to = at;
    scope.isOpen = false;
  } else if (kind === "scope_cancelled" && scope) {
    scope.cancelled = event;
  } else if (!kind.startsWith("task_")) {
    model.points.push(event);
  }
}

// Each task below its parent: those of one nursery in the order of their start.
function lanesOf(model) {
  const children = new Map();
  for (const task of model.tasks.values()) {
    const above = model.tasks.has(task.parent) ? task.parent : null;
    if (!children.has(above)) children.set(above, []);
    children.get(above).push(task);
  }
  for (const some of children.values()) {
    some.sort((one, other) => one.nursery - other.nursery || one.number - other.number);
  }
  const lanes = [];
  const ahead = [...(children.get(null) || [])].reverse().map((task) => [task, 0]);
  while (ahead.length) {
    const [task, depth] = ahead.pop();
    lanes.push({ task, depth });
    for (const child of [...(children.get(task.number) || [])].reverse()) {
      ahead.push([child, depth + 1]);
    }
  }
  return lanes;
}

// The lanes in which something is seen between two instants.
function lanesBetween(model, from, to) {
  return model.lanes.filter(({ task }) => task.from <= to && task.to >= from);
}

// The tasks after the first so many events, as lines of text.
function treeAfter(model, count) {
  const tasks = new Map();
  const scopes = new Map();
  const apply = ({ kind, task, facts }) => {
    if (kind === "task_started") tasks.set(task, { ...facts, scopes: [] });
    else if (kind === "task_moved" && tasks.has(task)) Object.assign(tasks.get(task), facts);
    else if (kind === "task_request" && tasks.has(task)) tasks.get(task).request = facts.request;
    else if (kind === "task_ended") tasks.delete(task);
    else if (kind === "scope_opened" && tasks.has(task)) {
      scopes.set(facts.scope, { ...facts });
      tasks.get(task).scopes.push(facts.scope);
    } else if (kind === "scope_changed" && scopes.has(facts.scope)) {
      Object.assign(scopes.get(facts.scope), facts);
    } else if (kind === "scope_cancelled" && scopes.has(facts.scope)) {
      scopes.get(facts.scope).cancelled = facts;
    } else if (kind === "scope_closed" && tasks.has(task)) {
      scopes.delete(facts.scope);
      tasks.get(task).scopes = tasks.get(task).scopes.filter((one) => one !== facts.scope);
    }
  };
  model.base.forEach(apply);
  for (let number = 0; number < count; number += 1) apply(model.events[number]);
  const at = count ? model.events[count - 1].at : model.start;
  const lines = [];
  for (const { task, depth } of model.lanes) {
    const now = tasks.get(task.number);
    if (!now) continue;
    const told = now.scopes.map((one) => scopeInWords(scopes.get(one), at)).filter(Boolean);
    const brackets = told.length ? `  [${told.join(", ")}]` : "";
    lines.push(`${"  ".repeat(depth)}${printable(now.name)} (${task.number})${brackets}`);
  }
  return lines.join("\n");
}

function scopeInWords(scope, at) {
  const told = scope.shield ? ["shielded"] : [];
  if (scope.cancelled) {
    const why = printable(scope.cancelled.reason || scope.cancelled.source);
    told.push(why ? `cancelled: ${why}` : "cancelled");
  } else if (typeof scope.deadline === "number") {
    told.push(`${(scope.deadline - at).toFixed(1)} s left`);
  }
  return told.join(", ");
}

// What happened, in words.
function inWords({ kind, facts }) {
  const request = facts.request ? `request ${facts.request.id} from ${facts.request.client}` : "";
  const words = {
    task_started: () => `${facts.name} starts`,
    task_moved: () => "is moved to its nursery",
    task_request: () => request || "works for no request",
    task_ended: () => "ends",
    scope_opened: () => `enters scope ${facts.scope}`,
    scope_changed: () => `scope ${facts.scope} is changed`,
    scope_cancelled: () =>
      `scope ${facts.scope} is cancelled: ${facts.reason || facts.source}` +
      (facts.by_task === null ? "" : `, by task ${facts.by_task}`),
    scope_closed: () => `leaves scope ${facts.scope}`,
    listening: () => `listens on ${facts.addresses.join(", ")}`,
    request_started: () => `${request} starts`,
    request_finished: () => `${request} ${facts.outcome} ${facts.reason}`,
    arrival_failed: () => `${request} ${facts.outcome} ${facts.reason}`,
    request_refused: () => `${facts.client} refused: ${facts.reason}`,
    accept_failed: () => `an accept failed: ${facts.error}`,
    draining: () => "drains",
    closed: () => `closed: ${facts.report}`,
    blocked: () => `the loop was blocked for ${facts.seconds} s: ${facts.where}`,
    mark: () => facts.text,
  };
  return printable(words[kind] ? words[kind]() : kind);
}

// On one line, with what is not seen or turns the line around written as its number.
function printable(text) {
  const shown = String(text).replace(/[\p{C}\p{Zl}\p{Zp}]/gu,
    (char) => `\\u{${char.codePointAt(0).toString(16)}}`);
  return shown.length > 300 ? `${shown.slice(0, 300)}...` : shown;
}
