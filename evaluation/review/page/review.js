// The page: what it knows of the folder, the case in view, decisions and keys.
import { Grid, spellMark } from "./grid.js";
import { Viewer, WINDOWS, loadVolume, readFault } from "./viewer.js";

const REASONS = [
  "lesion cannot be seen",
  "lesion in the wrong place",
  "lesion looks implausible",
  "anatomy looks implausible",
  "artefact",
  "label does not fit the image",
];
const KEYS = [
  ["→ N", "next case"], ["← P", "previous case"], ["A", "accept, and on to the next"], ["R", "reject with a reason, and on to the next"],
  ["U", "undo the last decision"], ["↑ ↓", "scroll slices; Page keys by ten"], ["L", "next lesion"],
  ["1 – 6", "CT window"], ["V", "planes, one plane, or 3D"], ["C", "side by side"], ["+ −", "enlarge about the crosshair"], ["F", "fit"],
  ["O", "labels filled, outlined, off"], ["[ ]", "opacity of labels"], ["G Esc", "all cases"], ["/", "find a case"],
  ["Mouse", "left: crosshair; wheel: slices; right: drag for the window"],
];
const POLL_MS = 3000;
const $ = (id) => document.getElementById(id);

const known = { rows: new Map(), revision: 0, mayDecide: true };
let current = null;
let order = [];
let lesionAt = -1;
let besideAt = 0;
let second = null;
let windowOf = "";
let starting = null;
let isDeciding = false;
let ahead = null; // of the next case: its key, and what the server says of it

const grid = new Grid(document, { onFilter: (rows) => { order = rows; sayProgress(); } });
const viewer = new Viewer($("canvas"), { onMove: sayPlace, onWindow: markWindow });

async function ask(path, body) {
  const answer = await fetch(path, body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  });
  if (!answer.ok) throw new Error(await readFault(answer));
  return answer.json();
}

async function refresh() {
  const state = await ask(`api/state?since=${known.revision}`);
  if (state.rows.length || !known.revision) {
    for (const row of state.rows) known.rows.set(row.key, row);
    grid.setRows([...known.rows.values()].sort((a, b) => a.index - b.index || a.attempt - b.attempt));
  }
  Object.assign(known, state, { rows: known.rows });
  document.title = `${state.title} – review`;
  $("title").textContent = state.title;
  $("title").title = state.path;
  for (const id of ["accept", "reject", "undo"]) $(id).hidden = !state.mayDecide;
  $("report").hidden = !state.hasReport;
  sayProgress();
  if (current) sayDecision();
}

function sayProgress() {
  const rows = [...known.rows.values()].filter((row) => row.status === "accepted" || row.status === "given");
  const count = (choice) => rows.filter((row) => row.mine?.choice === choice).length;
  const parts = [`${rows.length} case${rows.length === 1 ? "" : "s"}`, `${count("accept")} accepted`, `${count("reject")} rejected`];
  if (!known.mayDecide) parts.splice(1);
  if (known.isGrowing) parts.push("being written");
  if (known.reviewer) parts.push(`reviewer ${known.reviewer}`);
  if (current) parts.push(`${order.findIndex((row) => row.key === current.key) + 1} of ${order.length} shown`);
  $("progress").textContent = parts.join(" · ");
}

let noticeTimer = 0;
function tell(text, isBad = false) {
  clearTimeout(noticeTimer);
  $("notice").textContent = text;
  $("notice").classList.toggle("bad", isBad);
  $("notice").hidden = !text;
  if (text && !isBad) noticeTimer = setTimeout(() => tell(""), 4000);
}

const guarded = (work) => (...values) => Promise.resolve().then(() => work(...values)).catch((error) => tell(error.message, true));

// ---- One case ----

function startViewer() {
  starting ??= viewer.start().then(() => styleLabels());
  return starting;
}

async function openCase(key) {
  const started = performance.now();
  startViewer().catch(() => {}); // said below
  const detail = await (ahead?.key === key ? ahead.detail.catch(() => askCase(key)) : askCase(key));
  ahead = null;
  if (location.hash !== hashOf(key)) return;
  current = detail;
  lesionAt = -1;
  $("grid-view").hidden = true;
  $("case-view").hidden = false;
  $("to-grid").hidden = false;
  describe();
  for (const url of [detail.volumes.image, chosenMap(detail.volumes)]) if (url) loadVolume(url).catch(() => {});
  await startViewer();
  // The window of the label, until another is chosen; it then stays as long as the label does.
  const label = detail.labels.find((one) => one.id === detail.lesions[0]?.id)?.name ?? detail.request;
  if (label !== windowOf) viewer.setWindow(Viewer.windowFor(label), { redraws: false });
  windowOf = label;
  const shown = await showIn(viewer, detail, "fault", "caption");
  if (shown) {
    listLabels();
    await showBeside();
  }
  if (location.hash !== hashOf(key)) return;
  document.body.dataset.shown = key;
  document.body.dataset.milliseconds = String(Math.round(performance.now() - started));
  grid.select(key);
  prefetch();
}

function chosenMap(volumes) {
  return volumes.anatomy ?? volumes.label;
}

async function showIn(target, detail, fault, caption) {
  const { image } = detail.volumes;
  const overlay = chosenMap(detail.volumes);
  $(fault).hidden = true;
  $(caption).textContent = detail.title ?? (known.kind === "plan" ? "organs in their usual HU; not a CT" : "");
  if (!image && !overlay) {
    $(fault).textContent = detail.reason || "No volume was kept of this attempt.";
    $(fault).hidden = false;
    return false;
  }
  try {
    const findPlace = target === viewer ? () => lesionPlaces()[(lesionAt = 0)] : undefined;
    return await target.show({ image, overlay, labels: detail.labels, findPlace });
  } catch (error) {
    $(fault).textContent = error.message;
    $(fault).hidden = false;
    return false;
  }
}

function askCase(key) {
  return ask(`api/case/${encodeURIComponent(key)}`);
}

function prefetch() {
  const next = order[order.findIndex((row) => row.key === current?.key) + 1];
  if (!next) return;
  ahead = { key: next.key, detail: askCase(next.key) };
  ahead.detail
    .then(({ volumes }) => [volumes.image, chosenMap(volumes)].filter(Boolean).map(loadVolume))
    .then((loading) => Promise.all(loading))
    .catch(() => {}); // said when the case is opened
}

async function showBeside() {
  const others = current.beside;
  $("beside").hidden = !others.length;
  const wanted = besideAt ? others[(besideAt - 1) % others.length] : null;
  $("second").hidden = !wanted;
  $("beside").setAttribute("aria-pressed", String(Boolean(wanted)));
  if (wanted) $("caption").textContent = current.id;
  viewer.follower = null;
  if (second) second.follower = null;
  if (!wanted) return;
  if (!second) {
    second = new Viewer($("canvas-2"), { onMove: sayPlace });
    await second.start();
  }
  second.window = { ...viewer.window };
  second.setLabelStyle(viewer);
  if (await showIn(second, wanted, "fault-2", "caption-2")) {
    second.setLayout(viewer.layout);
    matchLabels();
    second.copyFrom(viewer);
    viewer.nv.createOnLocationChange(); // the readout is that of the case
    viewer.follower = second;
    second.follower = viewer;
  }
}

/** Show beside the case the labels that are shown on it. */
function matchLabels() {
  const change = new Map(viewer.labels.filter((label) => viewer.ids.has(label.id))
    .map((label) => [label.name, viewer.hidden.has(label.id) ? "add" : "delete"]));
  for (const { id, name } of second.labels) if (change.has(name)) second.hidden[change.get(name)](id);
  second.recolour();
}

function describe() {
  $("case-id").textContent = current.attempt ? `${current.id}, attempt ${current.attempt + 1}` : current.id;
  $("request").textContent = current.request;
  sayDecision();
  $("gates").replaceChildren(...current.verdicts.map((verdict) => {
    const row = make("li", verdict.message);
    row.className = verdict.passed ? "soft" : "bad-word";
    return row;
  }));
  $("origin").replaceChildren(...Object.entries(current.origin)
    .filter(([, value]) => typeof value !== "object" || value === null)
    .flatMap(([name, value]) => [make("dt", name.replaceAll("_", " ")), make("dd", String(value ?? "–"))]));
  $("lesions").replaceChildren(...current.lesions.map((lesion, number) => {
    const row = make("li");
    const size = lesion.mm ? `${lesion.mm.toFixed(1)} mm, ${lesion.ml.toFixed(2)} mL` : "not drawn";
    const button = make("button", `${lesion.label}: ${size}`);
    button.type = "button";
    button.title = `asked for ${lesion.asked_ml.toFixed(2)} mL`;
    button.onclick = () => { lesionAt = number - 1; nextLesion(); };
    row.append(button);
    return row;
  }));
}

function sayDecision() {
  const row = known.rows.get(current.key) ?? current;
  const mine = row.mine;
  $("accept").setAttribute("aria-pressed", String(mine?.choice === "accept"));
  $("reject").setAttribute("aria-pressed", String(mine?.choice === "reject"));
  const mark = spellMark(row);
  const word = make("span", mark ? mark.text : known.mayDecide ? "not decided" : "");
  word.className = mark ? mark.kind : "soft";
  const reason = mine?.reason || (mine ? "" : row.reason);
  $("verdict").replaceChildren(word, reason ? `: ${reason}` : "");
  $("others").replaceChildren(...row.others.map((other) => {
    const line = make("p", `${other.reviewer || "another reviewer"}: ${other.choice === "accept" ? "accepted" : "rejected"}${other.reason ? `, ${other.reason}` : ""}`);
    line.className = "soft";
    return line;
  }));
}

function listLabels() {
  const present = viewer.labels.filter((label) => viewer.ids.has(label.id));
  present.sort((a, b) => Number(b.lesion) - Number(a.lesion) || a.name.localeCompare(b.name));
  $("labels").replaceChildren(...present.map((label) => {
    const row = make("li");
    const line = make("label");
    const box = make("input");
    box.type = "checkbox";
    box.checked = !viewer.hidden.has(label.id);
    box.onchange = () => {
      if (box.checked) viewer.hidden.delete(label.id);
      else viewer.hidden.add(label.id);
      viewer.recolour();
      if (second && !$("second").hidden) matchLabels();
    };
    const swatch = make("span");
    swatch.className = "swatch";
    swatch.style.background = `rgb(${label.colour.join(" ")})`;
    line.append(box, swatch, label.name);
    row.append(line);
    return row;
  }));
}

/** Voxels of the lesions of the case in view: as recorded, or else one in each label of a lesion. */
function lesionPlaces() {
  const recorded = current.lesions.map((lesion) => lesion.centre).filter(Boolean);
  if (recorded.length) return recorded;
  return viewer.labels.filter((label) => label.lesion && viewer.ids.has(label.id)).map((label) => viewer.ids.get(label.id).voxel);
}

function nextLesion() {
  if (!viewer.nv?.volumes.length) return;
  const places = lesionPlaces();
  if (!places.length) return;
  lesionAt = (lesionAt + 1) % places.length;
  viewer.goTo(places[lesionAt]);
}

const AXES = ["sagittal", "coronal", "axial"];
function sayPlace({ hu, name, mm, vox, plane, dims }) {
  const parts = [];
  if (hu !== undefined) parts.push(`<b>${Math.round(hu)} HU</b>`);
  parts.push(name ? `<b></b>` : "no label");
  const [x, y, z] = mm;
  parts.push(`${x < 0 ? "L" : "R"} ${Math.abs(x).toFixed(0)}  ${y < 0 ? "P" : "A"} ${Math.abs(y).toFixed(0)}  ${z < 0 ? "I" : "S"} ${Math.abs(z).toFixed(0)} mm`);
  if (dims) parts.push(`${AXES[plane]} ${Math.round(vox[plane]) + 1} of ${dims[plane + 1]}`);
  $("readout").innerHTML = parts.join(" · ");
  if (name) [...$("readout").querySelectorAll("b")].pop().textContent = name;
}

// ---- Decisions ----

// Only what is on the screen is decided on: not a case that a fast hand has left already, nor one that is still loading.
function mayDecideNow() {
  return current && known.mayDecide && !isDeciding && document.body.dataset.shown === current.key && location.hash === hashOf(current.key);
}

async function decide(choice, reason = "") {
  if (!mayDecideNow()) return;
  isDeciding = true;
  const { key, id } = current;
  const next = order[order.findIndex((row) => row.key === key) + 1];
  try {
    await ask("api/decide", { key, choice, reason });
  } finally {
    isDeciding = false;
  }
  tell(`${id}: ${choice === "accept" ? "accepted" : `rejected${reason ? `, ${reason}` : ""}`}.${next ? "" : " This was the last case of the list."}`);
  if (next) go(next.key);
  await refresh();
}

async function undo() {
  if (!known.mayDecide) return;
  const { key } = await ask("api/undo", {});
  await refresh();
  if (!key) {
    tell("There is nothing to undo.");
    return;
  }
  tell(`${known.rows.get(key).id}: the decision was taken back.`);
  go(key);
}

function askReason() {
  if (!mayDecideNow()) return;
  $("reason-text").value = "";
  $("reasons").showModal();
  $("reason-text").focus();
}

function rejectWith(reason) {
  $("reasons").close();
  return decide("reject", reason);
}

// ---- Moving about ----

function hashOf(key) {
  return `#case=${encodeURIComponent(key)}`;
}

function go(key) {
  location.hash = hashOf(key);
}

function step(steps) {
  const place = order.findIndex((row) => row.key === current?.key);
  const next = order[place + steps];
  if (next) go(next.key);
  else tell(steps > 0 ? "This is the last case of the list." : "This is the first case of the list.");
}

function toGrid() {
  location.hash = "";
}

const route = guarded(async () => {
  const key = location.hash.startsWith("#case=") ? decodeURIComponent(location.hash.slice(6)) : null;
  if (key) {
    await openCase(key);
    sayProgress();
    return;
  }
  const last = current?.key ?? grid.at;
  current = null;
  delete document.body.dataset.shown;
  $("case-view").hidden = true;
  $("to-grid").hidden = true;
  $("grid-view").hidden = false;
  grid.draw();
  if (last) grid.select(last, true);
  sayProgress();
});

// ---- Display ----

function markWindow(wanted) {
  [...$("windows").children].forEach((button, number) => {
    button.setAttribute("aria-pressed", String(WINDOWS[number].name === wanted.name));
  });
  if (second) {
    second.window = { ...wanted };
    if (second.ct && !$("second").hidden) second.setWindow(wanted);
  }
}

const STYLES = { fill: "Fill ", outline: "Outline ", off: "Off " };
function styleLabels(state = $("outline").dataset.state ?? "fill") {
  $("outline").dataset.state = state;
  $("outline").firstChild.textContent = STYLES[state];
  const opacity = { fill: Number($("opacity").value), outline: 1, off: 0 }[state];
  for (const each of [viewer, second].filter(Boolean)) each.setLabelStyle({ opacity, outlined: state === "outline" });
}

function cycleLabels() {
  const states = Object.keys(STYLES);
  styleLabels(states[(states.indexOf($("outline").dataset.state ?? "fill") + 1) % states.length]);
}

function setOpacity(value) {
  $("opacity").value = value;
  styleLabels("fill");
}

function cycleBeside() {
  if (!current?.beside.length) return;
  besideAt = (besideAt + 1) % (current.beside.length + 1);
  return showBeside();
}

function cycleLayout() {
  viewer.setLayout(viewer.layout + 1);
  if (second) second.setLayout(viewer.layout);
}

const CASE_KEYS = {
  ArrowRight: () => step(1), n: () => step(1), ArrowLeft: () => step(-1), p: () => step(-1),
  a: () => decide("accept"), r: askReason,
  ArrowUp: () => viewer.scroll(1), ArrowDown: () => viewer.scroll(-1),
  PageUp: () => viewer.scroll(10), PageDown: () => viewer.scroll(-10),
  "+": () => viewer.zoom(1.5), "=": () => viewer.zoom(1.5), "-": () => viewer.zoom(1 / 1.5),
  l: nextLesion, o: cycleLabels, v: cycleLayout, c: cycleBeside, f: () => viewer.fit(),
  "[": () => setOpacity(Number($("opacity").value) - 0.1), "]": () => setOpacity(Number($("opacity").value) + 0.1),
  g: toGrid, Escape: toGrid,
  ...Object.fromEntries(WINDOWS.map((wanted, number) => [String(number + 1), () => viewer.setWindow(wanted)])),
};
const GRID_KEYS = {
  ArrowRight: () => grid.move(1), ArrowLeft: () => grid.move(-1), n: () => grid.move(1), p: () => grid.move(-1),
  ArrowDown: () => grid.move(grid.columns), ArrowUp: () => grid.move(-grid.columns),
};
const COMMON_KEYS = {
  u: undo, "?": () => $("keys").showModal(),
  "/": () => { toGrid(); setTimeout(() => $("f-text").focus(), 50); },
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if ($("reasons").open) {
    const reason = REASONS[Number(event.key) - 1];
    if (reason && !$("reason-text").value) {
      event.preventDefault();
      guarded(rejectWith)(reason);
    }
    return;
  }
  if ($("keys").open) return;
  const isTyping = event.target.matches("input:not([type=checkbox]):not([type=range]), select, textarea");
  if (isTyping) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.target.matches("input[type=range]") && key.startsWith("Arrow")) return;
  const action = COMMON_KEYS[key] ?? (current ? CASE_KEYS : GRID_KEYS)[key];
  const isHeld = event.repeat && ["a", "r", "u"].includes(key);
  // NiiVue has keys of its own on its canvas.
  if (event.target.tagName === "CANVAS") event.stopPropagation();
  if (action) {
    event.preventDefault();
    event.stopPropagation();
    if (!isHeld) guarded(action)();
  }
}

function make(tag, text = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

function wire() {
  $("windows").replaceChildren(...WINDOWS.map((wanted, number) => {
    const button = make("button", `${wanted.name} `);
    button.type = "button";
    button.title = `centre ${wanted.centre} HU, width ${wanted.width} HU`;
    button.append(make("kbd", String(number + 1)));
    button.onclick = () => viewer.setWindow(wanted);
    return button;
  }));
  markWindow(WINDOWS[0]);
  $("reason-list").replaceChildren(...REASONS.map((reason, number) => {
    const row = make("li");
    const button = make("button");
    button.type = "button";
    button.append(make("kbd", String(number + 1)), ` ${reason}`);
    button.onclick = () => guarded(rejectWith)(reason);
    row.append(button);
    return row;
  }));
  $("key-list").replaceChildren(...KEYS.flatMap(([keys, text]) => [make("dt", keys), make("dd", text)]));
  $("reasons").querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    guarded(rejectWith)($("reason-text").value.trim());
  });
  const clicks = {
    "reason-cancel": () => $("reasons").close(), "to-grid": toGrid, undo, help: () => $("keys").showModal(),
    accept: () => decide("accept"), reject: askReason, next: () => step(1), previous: () => step(-1),
    lesion: nextLesion, outline: cycleLabels, layout: cycleLayout, beside: cycleBeside, fit: () => viewer.fit(),
  };
  for (const [id, action] of Object.entries(clicks)) $(id).onclick = guarded(action);
  $("opacity").oninput = () => setOpacity(Number($("opacity").value));
  window.addEventListener("keydown", onKey, { capture: true });
  window.addEventListener("hashchange", route);
}

wire();
let isDown = false;
await guarded(refresh)();
await route();
// What the first case needs is made ready while its picture is looked for.
setTimeout(() => { if (!current) startViewer().then(prefetch).catch(() => {}); }, 300);
setInterval(async () => {
  try {
    await refresh();
    if (isDown) tell("");
    isDown = false;
  } catch (error) {
    isDown = true;
    tell(error instanceof TypeError ? "The server has stopped. Start maisi-aug view again and open its new address; decisions are kept." : error.message, true);
  }
}, POLL_MS);
