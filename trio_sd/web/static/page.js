"use strict";
// The server makes all the HTML, and escapes what is data. This puts it in place, keeps it up to date, and asks for the
// rows of the table of targets that are in view.

const ROW = 28, HEAD = 30;  // pixels, as in page.css
const AROUND = 30;          // rows that are held above and below those in view
const PACE = 1000;          // milliseconds from one request because of a change to the next
const SILENCE = 25000;      // milliseconds without a word, after which the connection counts as lost

const get = (id) => document.getElementById(id);
const view = get("view"), table = get("targets"), body = get("rows"), filter = get("filter"), dialog = get("trace");
const count = new Intl.NumberFormat("en-US");

let clock = 0;              // seconds that the server's clock is ahead of ours
let revision = document.body.dataset.revision;
let total = Number(get("total").dataset.total);
let rows = new Map();       // what is held of the table: by place, the row and the HTML that it was made of
let chosen = -1;            // the place of the row that the keyboard is at

// --- what everything shares

function element(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content.firstElementChild;
}

// Replace the children of a list that differ, so that the others keep the focus and what is selected in them.
function replaceList(list, items) {
  const known = list.items ?? [];
  const focused = list.contains(document.activeElement) ? document.activeElement.href : null;
  items.forEach((html, place) => {
    const old = list.children[place];
    if (!old) list.append(element(html));
    else if (known[place] !== html) old.replaceWith(element(html));
  });
  while (list.children.length > items.length) list.lastElementChild.remove();
  list.items = items;
  if (focused && !list.contains(document.activeElement)) {
    [...list.querySelectorAll("a")].find((link) => link.href === focused)?.focus();
  }
}

function age(seconds) {
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["m", 60]]) {
    if (seconds >= length) return Math.round(seconds / length) + unit;
  }
  return Math.max(0, Math.round(seconds)) + "s";
}

function tellAges() {
  const now = Date.now() / 1000 + clock;
  for (const time of document.querySelectorAll("time[data-at]")) {
    const text = age(now - time.dataset.at);
    if (time.textContent !== text) time.textContent = text;
    time.title ||= new Date(time.dataset.at * 1000).toLocaleString();
  }
}

// Say something to who does not see the page; not more often than every few seconds, and only the latest.
let announcing = 0, announcement = "";
function announce(text) {
  announcement = text;
  announcing ||= setTimeout(() => { announcing = 0; get("announce").textContent = announcement; }, 3000);
}

// --- what the server tells by itself

let events;
let heard = 0, attempted = 0, lostSince = 0;  // times
let announceable = false;                     // the first state is no change

function connect() {
  events?.close();
  events = new EventSource("/api/v1/page/status");
  events.onmessage = (event) => { heard = Date.now(); connected(true); update(JSON.parse(event.data)); };
  events.onerror = () => connected(false);
  heard = Date.now();
}

function connected(well) {
  if (!well) lostSince ||= Date.now();
  else if (lostSince) { lostSince = 0; refreshSoon(); }
  const text = well ? "live" : `connection lost at ${new Date(lostSince).toLocaleTimeString()}, trying again`;
  const told = get("connection");
  if (told.textContent !== text) told.textContent = text;
  told.className = well ? "live" : "lost";
}

// A browser comes back by itself after some errors, and gives up after others.
function watch() {
  if (Date.now() - heard > SILENCE) connected(false);
  if (lostSince && (events.readyState === EventSource.CLOSED || Date.now() - heard > SILENCE)) {
    if (Date.now() - attempted > 3000) { attempted = Date.now(); connect(); }
  }
}
function update(status) {
  clock = status.now - Date.now() / 1000;
  for (const name of ["summary", "notices"]) if (name in status) get(name).innerHTML = status[name];
  for (const name of ["sets", "providers", "changes"]) if (name in status) replaceList(get(name), status[name]);
  if ("options" in status) tellOptions(status.options);
  if ("changes" in status && get("changes").firstChild && announceable) {
    announce("Changed: " + [...get("changes").firstChild.children].slice(1).map((part) => part.textContent).join(" "));
  }
  if ("sets" in status) markSet();
  announceable = true;
  tellAges();
  if ("revision" in status && status.revision !== revision) { revision = status.revision; refreshSoon(); }
}
function tellOptions(html) {
  const select = filter.elements.set, value = select.value;
  if (document.activeElement === select) return;  // not under the hand of who chooses
  select.innerHTML = html;
  if (![...select.options].some((option) => option.value === value)) select.append(new Option(value, value));
  select.value = value;
}

// --- the table of targets: of all the rows only those in view, and some around them

let busy = false, again = false, refreshing = 0, asked = 0;

function query() {
  const parameters = new URLSearchParams();
  for (const [name, value] of new FormData(filter)) if (value.trim()) parameters.set(name, value.trim());
  return parameters;
}

function inView() {
  const first = Math.floor(view.scrollTop / ROW);
  return [first, Math.min(total, first + Math.ceil((view.clientHeight - HEAD) / ROW) + 1)];
}

// One request at a time; whatever is wanted meanwhile is asked for after it.
async function refresh() {
  if (busy) { again = true; return; }
  busy = true;
  try {
    do {
      again = false;
      await ask();
    } while (again);
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;  // the connection is lost, which is told otherwise
  } finally {
    busy = false;
    view.removeAttribute("aria-busy");
  }
}

async function ask() {
  const parameters = query(), [first, last] = inView();
  asked = Date.now();
  const offset = Math.max(0, first - AROUND);
  parameters.set("offset", offset);
  parameters.set("limit", Math.min(500, Math.max(last, first + Math.ceil(view.clientHeight / ROW)) - offset + AROUND));
  view.setAttribute("aria-busy", "true");
  const answer = await fetch("/api/v1/page/targets?" + parameters);
  if (!answer.ok) { again = false; return; }
  const found = await answer.json();
  if (again && parameters.get("q") !== query().get("q")) return;  // nobody wants to know any more
  tellTotal(found.total);
  hold(found.offset, found.rows);
}

function refreshSoon() {
  refreshing ||= setTimeout(() => { refreshing = 0; refresh(); refreshTrace(); }, Math.max(0, asked + PACE - Date.now()));
}

function tellTotal(found) {
  total = found;
  get("total").textContent = count.format(total);
  get("sizer").style.height = `${HEAD + total * ROW}px`;
  table.setAttribute("aria-rowcount", total + 1);
}

function hold(offset, found) {
  const held = new Map();
  found.forEach((html, place) => {
    const known = rows.get(offset + place);
    held.set(offset + place, known?.html === html ? known : { html, row: rowOf(html) });
  });
  rows = held;
  const wanted = [...held.values()].map((one) => one.row);
  if (wanted.length !== body.children.length || wanted.some((row, place) => row !== body.children[place])) {
    body.replaceChildren(...wanted);
  }
  table.style.top = `${offset * ROW}px`;
  mark();
}

function rowOf(html) {
  const row = element(html);
  row.querySelector("a").tabIndex = -1;  // the arrow keys go from row to row
  return row;
}

function mark() {
  const row = rows.get(chosen)?.row;
  for (const other of body.querySelectorAll(".chosen")) {
    if (other === row) continue;
    other.classList.remove("chosen");
    other.removeAttribute("aria-selected");
  }
  row?.classList.add("chosen");
  row?.setAttribute("aria-selected", "true");
  if (row) table.setAttribute("aria-activedescendant", row.id);
  else table.removeAttribute("aria-activedescendant");
}

function choose(place) {
  chosen = Math.max(0, Math.min(place, total - 1));
  const top = chosen * ROW, room = view.clientHeight - HEAD;
  if (top < view.scrollTop) view.scrollTop = top;
  else if (top + ROW > view.scrollTop + room) view.scrollTop = top + ROW - room;
  mark();
}

function scrolled() {
  const [first, last] = inView();
  if (!rows.has(first) || (last > first && !rows.has(last - 1))) refresh();
}

function markSet() {
  for (const link of get("sets").querySelectorAll("a")) {
    const shown = new URL(link.href).searchParams.get("set") === filter.elements.set.value;
    link.ariaCurrent = shown ? "true" : null;
  }
}

function filtered() {
  chosen = -1;
  markSet();
  view.scrollTop = 0;
  const parameters = query();
  history.replaceState(null, "", parameters.size ? "/?" + parameters : "/");
  refresh().then(() => announce(`${count.format(total)} targets`));
}

// --- what the rules did to one target

let traced = "", opened = 0;

async function openTrace(row) {
  const link = row?.querySelector("a");
  if (!link) return;
  traced = new URL(link.href).search;
  get("trace-content").textContent = "…";
  dialog.html = "";
  if (!dialog.open) dialog.showModal();
  await refreshTrace();
}

async function refreshTrace() {
  if (!dialog.open || !traced) return;
  const wanted = traced, mine = ++opened;
  const answer = await fetch("/api/v1/page/trace" + wanted).catch(() => null);
  if (!answer || wanted !== traced || mine !== opened || !dialog.open) return;
  if (!answer.ok && answer.status !== 404) return;
  const { html } = await answer.json();
  if (html !== dialog.html) get("trace-content").innerHTML = dialog.html = html;
}

// --- what people do

const STEPS = {
  ArrowDown: () => chosen + 1,
  ArrowUp: () => chosen - 1,
  PageDown: () => chosen + Math.floor((view.clientHeight - HEAD) / ROW) - 1,
  PageUp: () => chosen - Math.floor((view.clientHeight - HEAD) / ROW) + 1,
  Home: () => 0,
  End: () => total - 1,
};

function listen() {
  let typing = 0;
  filter.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(filtered, 150); });
  filter.addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(typing); filtered(); });
  view.addEventListener("scroll", () => requestAnimationFrame(scrolled), { passive: true });
  new ResizeObserver(scrolled).observe(view);
  table.addEventListener("keydown", (event) => {
    if (event.key === "Enter") openTrace(rows.get(chosen)?.row);
    else if (event.key in STEPS && total && !event.ctrlKey && !event.altKey && !event.metaKey) choose(STEPS[event.key]());
    else return;
    event.preventDefault();
  });
  table.addEventListener("focus", () => choose(rows.has(chosen) ? chosen : inView()[0]));
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (event.ctrlKey || event.metaKey || event.shiftKey || getSelection().toString()) return;
    event.preventDefault();
    table.focus({ preventScroll: true });
    choose([...rows].find(([, one]) => one.row === row)?.[0] ?? -1);
    openTrace(row);
  });
  get("sets").addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const wanted = new URL(link.href).searchParams.get("set"), select = filter.elements.set;
    if (![...select.options].some((option) => option.value === wanted)) select.append(new Option(wanted, wanted));
    select.value = select.value === wanted ? "" : wanted;
    filtered();
  });
  document.addEventListener("keydown", (event) => {
    const field = filter.elements.q;
    if (event.key === "/" && !dialog.open && !event.target.matches("input, select")) field.focus();
    else if (event.key === "Escape" && event.target === field && !field.value) table.focus();
    else return;
    event.preventDefault();
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}

function begin() {
  document.documentElement.classList.add("live");
  table.setAttribute("role", "grid");
  table.tabIndex = 0;
  clock = Number(document.body.dataset.now) - Date.now() / 1000;
  if (dialog.open) {
    dialog.close();  // and open again as what nothing else is reached behind
    dialog.showModal();
    traced = location.search;
  }
  tellTotal(total);
  const offset = Number(document.body.dataset.offset);
  hold(offset, [...body.children].map((row) => row.outerHTML));
  view.scrollTop = offset * ROW;
  tellAges();
  listen();
  markSet();
  connect();
  scrolled();
  setInterval(() => { tellAges(); watch(); }, 1000);
}

begin();
