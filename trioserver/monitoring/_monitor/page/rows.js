// The rows of the tree that a state has: what each shows, and how deep it is. Data in, data out.

import { plain, seconds, size } from "./words.js";

export function rowsOf(state) {
  const rows = [];
  const tasks = childrenOf(state.tasks.tasks);
  state.servers.forEach((server, number) => addServer(rows, state, tasks, server, number));
  return rows;
}

function childrenOf(tasks) {
  const byParent = new Map(), byId = new Map();
  for (const task of tasks) {
    byId.set(task.id, task);
    if (!byParent.has(task.parent)) byParent.set(task.parent, []);
    byParent.get(task.parent).push(task);
  }
  return { byParent, byId };
}

function addServer(rows, state, tasks, server, number) {
  const key = `s${number}`;
  rows.push({ key, depth: 0, kind: "server", name: plain(server.name), badge: server.state,
    facts: `${server.requests.length + server.hidden} requests` });
  const at = new Map(server.listeners.map((it) => [it.address, it]));
  const groups = new Map(server.listeners.map((it) => [it.address, []]));
  for (const request of server.requests) {
    if (!groups.has(request.listener)) groups.set(request.listener, []);
    groups.get(request.listener).push(request);
  }
  for (const [address, requests] of groups) {
    const listener = at.get(address);
    const accepts = listener?.accepting ? "accepting" : "not accepting";
    const queued = listener?.queued ? `, ${listener.queued} in the queue` : "";
    const group = `${key}/l${address}`;
    rows.push({ key: group, parent: key, depth: 1, kind: "listener", name: plain(address),
      facts: listener ? accepts + queued : "" });
    for (const request of requests) {
      addRequest(rows, state, tasks, request, { number, parent: group, depth: 2 });
    }
  }
  if (server.hidden) rows.push(more(key, server.hidden));
  for (const worker of server.workers) addWorker(rows, state, worker, { number, parent: key });
}

function addWorker(rows, state, worker, { number, parent }) {
  const key = `${parent}/w${worker.pid}`;
  const late = worker.age > 2 ? `, told ${seconds(worker.age)} ago` : "";
  rows.push({ key, parent, depth: 1, kind: "worker", name: `worker ${worker.pid}`,
    badge: worker.state, facts: `generation ${worker.generation}, ${worker.statistics.active} active${late}` });
  const none = { byParent: new Map(), byId: new Map() };
  for (const request of worker.requests) {
    addRequest(rows, state, none, request, { number, parent: key, depth: 2, worker: worker.pid });
  }
  if (worker.hidden) rows.push(more(key, worker.hidden));
}

function more(parent, hidden) {
  return { key: `${parent}/more`, parent, depth: 2, kind: "more", name: `${hidden} more, not listed`, facts: "" };
}

function addRequest(rows, state, tasks, request, { number, parent, depth, worker = null }) {
  const key = `${parent}/r${request.id}`;
  const task = tasks.byId.get(request.task);
  rows.push({ key, parent, depth, kind: "request", server: number, request: request.id, worker,
    name: `#${request.id} ${plain(request.client)}`, badge: request.state,
    facts: `${request.mode}, age ${seconds(request.age)}, in ${size(request.bytes_received)}, out ${size(request.bytes_sent)}`,
    left: request.time_left, whole: request.time_left === null ? null : request.age + request.time_left });
  if (task) addInside(rows, state, tasks, task, { parent: key, depth: depth + 1, isRequest: true });
}

// The scopes of a task, then what runs in its nurseries.
function addInside(rows, state, tasks, task, { parent, depth, isRequest }) {
  task.scopes.forEach((scope, number) => {
    if (isRequest && number === 0 && !scope.cancelled) return; // its bar is that of the request
    const words = scopeWords(scope);
    if (!words && scope.deadline === null) return;
    rows.push({ key: `${parent}/c${task.id}.${number}`, parent, depth, kind: "scope",
      name: scope.nursery === null ? "scope" : `nursery ${scope.nursery}`,
      badge: scope.cancelled ? "cancelled" : undefined, facts: words,
      left: scope.deadline === null ? null : scope.deadline - state.at, whole: undefined });
  });
  for (const child of tasks.byParent.get(task.id) ?? []) {
    const key = `${parent}/t${child.id}`;
    rows.push({ key, parent, depth, kind: "task", name: plain(child.name), facts: "child task" });
    addInside(rows, state, tasks, child, { parent: key, depth: depth + 1, isRequest: false });
  }
}

function scopeWords(scope) {
  const told = [];
  if (scope.shield) told.push("shielded");
  if (scope.cancelled) {
    const why = scope.cancelled.reason || scope.cancelled.source;
    told.push(why ? `cancelled: ${plain(why)}` : "cancelled");
  }
  return told.join(", ");
}
