// The blinded test: one image after the other, an answer, a confidence and a clock.
import { Viewer, WINDOWS, loadVolume, readFault } from "./viewer.js";

const LEVELS = [["q", "guess"], ["w", "unsure"], ["e", "rather sure"], ["s", "sure"], ["d", "certain"]];
const $ = (id) => document.getElementById(id);
const viewer = new Viewer($("canvas"), { onWindow: markWindow });
let state = null;
let shownAt = 0;
let confidence = 0;
let isBusy = false;

async function ask(path, body) {
  const answer = await fetch(path, body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  });
  if (!answer.ok) throw new Error(await readFault(answer));
  return answer.json();
}

function tell(text) {
  $("notice").textContent = text;
  $("notice").classList.add("bad");
  $("notice").hidden = !text;
}

const guarded = (work) => (...values) => Promise.resolve().then(() => work(...values)).catch((error) => tell(error.message));
const addressOf = (number) => `test/${number}/image.nii.gz`;

function say() {
  $("progress").textContent = `${state.done} of ${state.total} read` + (state.reviewer ? ` · reader ${state.reviewer}` : "");
}

async function showNext() {
  say();
  $("intro").hidden = true;
  $("test").hidden = state.next === null;
  $("done").hidden = state.next !== null;
  shownAt = 0;
  $("fault").hidden = true;
  if (state.next === null) return;
  setConfidence(0);
  if (!viewer.nv) await viewer.start();
  try {
    await viewer.show({ image: addressOf(state.next) });
  } catch (error) {
    $("fault").textContent = error.message;
    $("fault").hidden = false;
    return;
  }
  shownAt = performance.now();
  document.body.dataset.shown = String(state.next);
  if (state.after !== null) loadVolume(addressOf(state.after)).catch(() => {});
}

async function answer(text) {
  if (!shownAt || isBusy) return;
  if (!confidence) {
    tell("Say how sure you are first: Q W E S D.");
    return;
  }
  isBusy = true;
  try {
    const seconds = (performance.now() - shownAt) / 1000;
    state = await ask("api/test/answer", { number: state.next, answer: text, confidence, seconds });
    tell("");
    await showNext();
  } finally {
    isBusy = false;
  }
}

function setConfidence(level) {
  confidence = level;
  [...$("confidence").children].forEach((button, n) => button.setAttribute("aria-pressed", String(n + 1 === level)));
  if (level) tell("");
}

function markWindow(wanted) {
  [...$("windows").children].forEach((button, n) => button.setAttribute("aria-pressed", String(WINDOWS[n].name === wanted.name)));
}

function build(text, key, action) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(`${text} `, Object.assign(document.createElement("kbd"), { textContent: key }));
  button.onclick = guarded(action);
  return button;
}

const ACTIONS = {
  x: () => answer("real"), y: () => answer("synthetic"), v: () => viewer.setLayout(viewer.layout + 1),
  ArrowUp: () => viewer.scroll(1), ArrowDown: () => viewer.scroll(-1),
  PageUp: () => viewer.scroll(10), PageDown: () => viewer.scroll(-10),
  ...Object.fromEntries(LEVELS.map(([key], n) => [key, () => setConfidence(n + 1)])),
  ...Object.fromEntries(WINDOWS.map((wanted, n) => [String(n + 1), () => viewer.setWindow(wanted)])),
};

$("windows").replaceChildren(...WINDOWS.map((wanted, n) => build(wanted.name, String(n + 1), () => viewer.setWindow(wanted))));
$("confidence").replaceChildren(...LEVELS.map(([key, text], n) => build(text, key.toUpperCase(), () => setConfidence(n + 1))));
markWindow(WINDOWS[0]);
$("real").onclick = guarded(() => answer("real"));
$("synthetic").onclick = guarded(() => answer("synthetic"));
$("layout").onclick = guarded(ACTIONS.v);
$("begin").onclick = guarded(showNext);
window.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("test").hidden) return;
  const action = ACTIONS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (event.target.tagName === "CANVAS") event.stopPropagation();
  if (action) {
    event.preventDefault();
    event.stopPropagation();
    guarded(action)();
  }
}, { capture: true });
setInterval(() => {
  $("clock").textContent = shownAt ? `${Math.floor((performance.now() - shownAt) / 1000)} s` : "";
}, 500);
await guarded(async () => {
  state = await ask("api/test");
  say();
  if (state.next === null) await showNext();
  else $("begin").focus();
})();
