// The page: takes states as they come, shows the one that is looked at, and does what keys say.

import { Past } from "./past.js";
import { rowsOf } from "./rows.js";
import { element, pairs, showServers, Tree } from "./view.js";
import { plain, seconds, size } from "./words.js";

const by = (id) => document.getElementById(id);
const past = new Past();
const tree = new Tree(by("tree"), (row) => { if (row.kind === "request") openDetail(row); });
tree.onToggle = () => show(false);
let source = null, detail = null, said = "";

// States ---------------------------------------------------------------------------

function connect() {
  source?.close();
  const query = new URLSearchParams({ sort: by("sort").value, filter: by("search").value });
  source = new EventSource(`/events?${query}`);
  source.onopen = () => tell("connected", false);
  source.onerror = () => {
    tell("not connected: trying again", true);
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 1000);
  };
  source.onmessage = (event) => {
    past.add(JSON.parse(event.data));
    tell("connected", false);
    if (!past.isPaused) show(true);
    else showInstant();
  };
}

function tell(words, isLost) {
  const place = by("connection");
  if (place.textContent !== words) place.textContent = words;
  place.classList.toggle("lost", isLost);
}

function show(isLive) {
  const state = past.shown;
  if (!state) return;
  by("pid").textContent = `process ${state.pid}`;
  document.title = `trioserver: ${state.servers.map((it) => `${plain(it.name)} ${it.statistics.active}`).join(", ")}`;
  showServers(by("servers"), state, past.until);
  tree.show(rowsOf(state), state.interval, isLive && !past.isPaused);
  showFindings(state);
  showInstant();
  summarise(state);
  if (detail && isLive) refreshDetail();
}

// Said when it changes, and at most every few seconds: a screen reader reads it aloud.
let saidAt = 0;
function summarise(state) {
  const words = state.servers.map((it) => `${plain(it.name)} ${it.state}, ${it.statistics.active} active`).join("; ");
  const now = performance.now();
  if (words === said || now - saidAt < 3000 && saidAt) return;
  [said, saidAt] = [words, now];
  by("summary").textContent = words;
}

function showInstant() {
  by("past").hidden = !past.isPaused;
  by("instant").max = past.states.length - 1;
  by("instant").value = past.index;
  by("ago").textContent = past.ago > 0.05 ? `${seconds(past.ago)} ago` : "now";
  by("pause").setAttribute("aria-pressed", past.isPaused);
  by("pause").textContent = past.isPaused ? "Go on" : "Pause";
}

function showFindings(state) {
  const list = by("findings-list");
  by("findings").hidden = !state.findings.length;
  list.textContent = "";
  for (const finding of state.findings) {
    const item = document.createElement("li");
    const name = document.createElement("b");
    name.textContent = plain(finding.lint);
    item.append(name, ` ${plain(finding.message)}`);
    if (finding.request !== null && finding.server !== null) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `request ${finding.request}`;
      button.onclick = () => openDetail(finding);
      item.append(button);
    }
    list.append(item);
  }
}

// One request ----------------------------------------------------------------------

function openDetail({ server, request, worker = null }) {
  detail = { server, request, worker, opener: detail?.opener ?? document.activeElement };
  by("detail").hidden = false;
  by("detail-title").textContent = `Request ${request}`;
  by("detail-text").textContent = "";
  by("detail-close").focus();
  refreshDetail();
}

function closeDetail() {
  if (!detail) return;
  by("detail").hidden = true;
  const { opener } = detail;
  detail = null;
  (opener?.isConnected && opener !== document.body ? opener : by("tree")).focus();
}

async function refreshDetail() {
  const { server, request, worker } = detail;
  try {
    const from = worker === null ? "" : `&worker=${worker}`;
    const answer = await fetch(`/request?server=${server}&id=${request}${from}`);
    const told = await answer.json();
    if (detail?.request !== request || detail.server !== server || detail.worker !== worker) return;
    const facts = told.request;
    pairs(by("detail-facts"), facts ? {
      client: facts.client, listener: facts.listener, state: facts.state, mode: facts.mode,
      age: seconds(facts.age), left: seconds(facts.time_left),
      received: size(facts.bytes_received), sent: size(facts.bytes_sent),
    } : { state: "ended" });
    if (by("detail-text").textContent !== told.text) by("detail-text").textContent = told.text;
    showOrders(Boolean(facts) && worker === null && past.shown.control);
  } catch { /* the connection is lost, which is told above */ }
}

function showOrders(canOrder) {
  const place = by("detail-orders");
  place.textContent = "";
  if (!canOrder) return;
  const button = element("button", "danger");
  button.type = "button";
  button.textContent = "Cancel this request";
  button.onclick = () => { if (confirm(`Cancel request ${detail.request}?`)) order({ do: "cancel", ...named(detail) }); };
  place.append(button);
}

const named = ({ server, request }) => ({ server, request });

async function order(facts) {
  const answer = await fetch("/control", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(facts) });
  const said = answer.ok ? (await answer.json()).message : await answer.text();
  by("summary").textContent = said;
}

// Keys and buttons -----------------------------------------------------------------

function togglePause() {
  if (past.isPaused) past.resume(); else past.pause();
  show(false);
}

function step(by_) { past.step(by_); show(false); }

const KEYS = {
  ArrowDown: () => tree.move(1), ArrowUp: () => tree.move(-1),
  Home: () => tree.move(-Infinity), End: () => tree.move(Infinity),
  PageDown: () => tree.move(10), PageUp: () => tree.move(-10),
  ArrowRight: () => tree.selected && tree.toggle(tree.selected, true),
  ArrowLeft: () => tree.selected && tree.toggle(tree.selected, false),
  Enter: () => { const row = tree.selectedRow; if (row?.kind === "request") openDetail(row); },
};
const ANYWHERE = {
  "/": () => by("search").focus(), " ": togglePause, "?": () => by("help").showModal(),
  "[": () => step(-1), "]": () => step(1), Escape: closeDetail,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || by("help").open) return;
  const isField = event.target.matches("input, select, button");
  if (isField) {
    if (event.key === "Escape" && event.target === by("search")) { event.target.value = ""; connect(); by("tree").focus(); }
    else if (event.key === "Escape") closeDetail();
    return;
  }
  const act = (event.target === by("tree") || event.target === document.body ? KEYS[event.key] : undefined) ?? ANYWHERE[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

let typing = 0;
by("search").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(connect, 250); });
by("tools").addEventListener("submit", (event) => event.preventDefault());
by("sort").addEventListener("change", connect);
by("pause").addEventListener("click", togglePause);
by("earlier").addEventListener("click", () => step(-1));
by("later").addEventListener("click", () => step(1));
by("instant").addEventListener("input", (event) => { past.go(Number(event.target.value)); show(false); });
by("detail-close").addEventListener("click", closeDetail);
by("help-open").addEventListener("click", () => by("help").showModal());

connect();
