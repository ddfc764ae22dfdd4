// Puts rows into the page, each in the element that it had before; nothing is made of markup.

import { plain, seconds } from "./words.js";

const STAYS = 2000; // milliseconds that what has ended can still be seen

export class Tree {
  constructor(list, onOpen) {
    this.list = list;
    this.onOpen = onOpen;
    this.items = new Map();
    this.closed = new Set();
    this.selected = null;
    this.wholes = new Map(); // the longest time that a bar had left
  }

  show(rows, interval, isLive) {
    const visible = this.visible(rows);
    const parents = new Set(rows.map((row) => row.parent));
    const keys = new Set(visible.map((row) => row.key));
    for (const [key, item] of this.items) if (!keys.has(key)) this.leave(key, item, isLive);
    let before = null;
    for (const row of visible) {
      const item = this.items.get(row.key) ?? this.come(row, isLive);
      this.fill(item, row, parents.has(row.key), interval, isLive);
      const next = before ? before.nextSibling : this.list.firstChild;
      if (next !== item) this.list.insertBefore(item, next);
      before = item;
    }
    if (!this.items.has(this.selected)) this.select(visible[0]?.key ?? null, false);
  }

  visible(rows) {
    const hidden = new Set();
    return rows.filter((row) => {
      if (row.parent && (hidden.has(row.parent) || this.closed.has(row.parent))) {
        hidden.add(row.key);
        return false;
      }
      return true;
    });
  }

  come(row, isLive) {
    const item = document.createElement("li");
    item.id = `row-${row.key}`;
    item.setAttribute("role", "treeitem");
    item.append(element("span", "what"), element("span", "time"));
    const what = item.firstChild;
    what.append(element("span", "twisty"), element("span", "name"), element("span", "badge"), element("span", "facts"));
    what.firstChild.setAttribute("aria-hidden", "true");
    if (isLive && this.items.size) item.classList.add("new");
    item.addEventListener("click", (event) => {
      this.select(row.key, true);
      if (event.target === what.firstChild) this.toggle(row.key);
      else this.onOpen(item.row);
    });
    this.items.set(row.key, item);
    return item;
  }

  leave(key, item, isLive) {
    this.items.delete(key);
    this.wholes.delete(key);
    item.removeAttribute("id");
    item.setAttribute("aria-hidden", "true");
    if (!isLive || item.row?.kind !== "request") { item.remove(); return; }
    item.classList.add("gone");
    setTimeout(() => item.remove(), STAYS);
  }

  fill(item, row, hasChildren, interval, isLive) {
    item.row = row;
    item.className = item.classList.contains("new") ? `new kind-${row.kind}` : `kind-${row.kind}`;
    item.style.setProperty("--depth", row.depth);
    item.setAttribute("aria-level", row.depth + 1);
    const isOpen = !this.closed.has(row.key);
    if (hasChildren) item.setAttribute("aria-expanded", isOpen); else item.removeAttribute("aria-expanded");
    const [twisty, name, badge, facts] = item.firstChild.children;
    text(twisty, hasChildren ? (isOpen ? "▾" : "▸") : "");
    text(name, row.name);
    badge.hidden = !row.badge;
    text(badge, row.badge ?? "");
    badge.className = `badge ${row.badge ?? ""}`;
    text(facts, row.facts);
    this.bar(item.lastChild, row, interval, isLive);
  }

  bar(place, row, interval, isLive) {
    if (row.left === undefined || row.left === null) {
      text(place, row.kind === "request" ? "no deadline" : "");
      return;
    }
    let bar = place.querySelector(".left");
    if (!bar) {
      place.textContent = "";
      bar = element("span", "left");
      bar.append(element("span", ""));
      place.append(bar, document.createTextNode(""));
    }
    const whole = row.whole ?? Math.max(row.left, this.wholes.get(row.key) ?? 0);
    this.wholes.set(row.key, whole);
    const share = (left) => `${Math.max(0, Math.min(1, left / (whole || 1))) * 100}%`;
    bar.classList.toggle("short", row.left < 2 || row.left < whole / 10);
    const inner = bar.firstChild;
    inner.style.transition = isLive ? `width ${interval}s linear` : "none";
    inner.style.width = share(isLive ? row.left - interval : row.left);
    place.lastChild.nodeValue = `${seconds(Math.max(0, row.left))} left`;
  }

  select(key, scroll) {
    this.items.get(this.selected)?.setAttribute("aria-selected", "false");
    this.selected = key;
    const item = this.items.get(key);
    if (!item) { this.list.removeAttribute("aria-activedescendant"); return; }
    item.setAttribute("aria-selected", "true");
    this.list.setAttribute("aria-activedescendant", item.id);
    if (scroll) item.scrollIntoView({ block: "nearest" });
  }

  move(by) {
    const items = [...this.items.values()].sort((one, other) =>
      one.compareDocumentPosition(other) & Node.DOCUMENT_POSITION_FOLLOWING ? -1 : 1);
    const at = items.findIndex((item) => item.row.key === this.selected);
    const next = items[Math.max(0, Math.min(items.length - 1, at + by))];
    if (next) this.select(next.row.key, true);
  }

  toggle(key, open = this.closed.has(key)) {
    if (open) this.closed.delete(key); else this.closed.add(key);
    this.onToggle?.();
  }

  get selectedRow() { return this.items.get(this.selected)?.row; }
}

export function showServers(place, state, past) {
  while (place.children.length > state.servers.length) place.lastChild.remove();
  state.servers.forEach((server, number) => {
    const card = place.children[number] ?? place.appendChild(serverCard());
    const counts = server.statistics;
    const [title, facts, chart] = card.children;
    text(title.firstChild, plain(server.name));
    text(title.lastChild, server.state);
    title.lastChild.className = `badge ${server.state}`;
    const slots = server.slots === null ? "" : ` of ${server.slots}`;
    pairs(facts, {
      up: seconds(server.uptime), active: `${counts.active}${slots}`, total: counts.accepted,
      ...Object.fromEntries(Object.entries(counts.outcomes).filter(([, value]) => value)),
      ...(counts.refused ? { "turned away": counts.refused } : {}),
      ...(counts.lingering ? { lingering: counts.lingering } : {}),
    });
    draw(chart, past.map((it) => it.servers[number]?.statistics.active ?? 0));
  });
}

function serverCard() {
  const card = element("article", "server");
  const title = element("div", "line");
  title.append(document.createElement("strong"), element("span", "badge"));
  const chart = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  chart.setAttribute("class", "chart");
  chart.setAttribute("viewBox", "0 0 100 20");
  chart.setAttribute("preserveAspectRatio", "none");
  chart.setAttribute("role", "img");
  chart.append(document.createElementNS("http://www.w3.org/2000/svg", "path"));
  card.append(title, document.createElement("dl"), chart);
  return card;
}

function draw(chart, values) {
  const most = Math.max(1, ...values), last = Math.max(1, values.length - 1);
  const points = values.map((value, at) => `${(at / last) * 100},${19 - (value / most) * 18}`);
  chart.firstChild.setAttribute("d", points.length ? `M${points.join("L")}` : "");
  chart.setAttribute("aria-label", `active requests in the last minute: from ${Math.min(...values)} to ${Math.max(...values)}`);
}

export function pairs(list, facts) {
  list.textContent = "";
  for (const [name, value] of Object.entries(facts)) {
    const pair = document.createElement("div");
    const term = document.createElement("dt"), said = document.createElement("dd");
    term.textContent = name.replace("_", " ");
    said.textContent = plain(value);
    pair.append(term, said);
    list.append(pair);
  }
}

export function element(name, kind) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  return made;
}

function text(place, words) {
  if (place.textContent !== words) place.textContent = words;
}
