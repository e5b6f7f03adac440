// The list of cases: filters, and a grid of which only the visible part is in the page.

const CELL = { width: 210, height: 236 };
const OVERSCAN_ROWS = 2;
// A browser opens six connections per server, and volumes of an opened case must not wait for small pictures.
const MAX_LOADING = 3;

/** Loads the small pictures that are in view, the last asked for first. */
class Pictures {
  constructor() {
    this.wanted = [];
    this.numLoading = 0;
  }

  ask(picture, address) {
    this.wanted.push([picture, address]);
  }

  load() {
    while (this.numLoading < MAX_LOADING && this.wanted.length) {
      const [picture, address] = this.wanted.pop();
      if (!picture.isConnected) continue;
      this.numLoading++;
      const goOn = () => {
        this.numLoading--;
        this.load();
      };
      picture.addEventListener("load", goOn, { once: true });
      picture.addEventListener("error", goOn, { once: true });
      picture.src = address;
    }
  }
}

export class Grid {
  constructor(root, { onFilter }) {
    this.scroller = root.getElementById("scroller");
    this.cells = root.getElementById("cells");
    this.empty = root.getElementById("empty");
    this.form = root.getElementById("filters");
    this.count = root.getElementById("count");
    this.field = (name) => root.getElementById(`f-${name}`);
    this.rows = [];
    this.shown = [];
    this.at = null;
    this.live = new Map();
    this.pictures = new Pictures();
    this.onFilter = onFilter;
    this.form.addEventListener("input", () => this.filter());
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("reset", () => requestAnimationFrame(() => this.filter()));
    this.scroller.addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.draw()).observe(this.scroller);
  }

  setRows(rows) {
    this.rows = rows;
    fill(this.field("label"), [["", "all"], ...unique(rows.flatMap((row) => row.labels)).map((name) => [name, name])]);
    const attempts = unique(rows.map((row) => row.attempt)).sort((a, b) => a - b);
    fill(this.field("attempt"), [["", "all"], ...attempts.map((n) => [String(n), String(n + 1)])]);
    this.filter();
  }

  filter() {
    const value = (name) => this.field(name).value;
    const text = value("text").trim().toLowerCase();
    const [label, status, attempt, review] = ["label", "status", "attempt", "review"].map(value);
    const least = value("min") === "" ? -Infinity : Number(value("min"));
    const most = value("max") === "" ? Infinity : Number(value("max"));
    const anySize = least === -Infinity && most === Infinity;
    this.shown = this.rows.filter((row) => {
      const passed = row.status === "accepted" || row.status === "given";
      return (
        (!text || row.id.toLowerCase().includes(text) || row.request.toLowerCase().includes(text)) &&
        (!label || row.labels.includes(label)) &&
        (anySize || (row.mm !== null && row.mm >= least && row.mm <= most)) &&
        (!status || passed === (status === "passed")) &&
        (!attempt || row.attempt === Number(attempt)) &&
        (!review || matchesReview(row, review))
      );
    });
    this.count.textContent = `${this.shown.length} of ${this.rows.length}`;
    this.draw();
    this.onFilter(this.shown);
  }

  get columns() {
    return Math.max(1, Math.floor(this.scroller.clientWidth / CELL.width));
  }

  draw() {
    if (!this.scroller.clientWidth) return;
    const columns = this.columns;
    const width = Math.floor(this.scroller.clientWidth / columns);
    const height = CELL.height;
    const numRows = Math.ceil(this.shown.length / columns);
    this.cells.style.height = `${numRows * height}px`;
    this.empty.hidden = this.shown.length > 0;
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / height) - OVERSCAN_ROWS) * columns;
    const last = Math.min(this.shown.length, (Math.ceil((this.scroller.scrollTop + this.scroller.clientHeight) / height) + OVERSCAN_ROWS) * columns);
    const wanted = [];
    for (let place = first; place < last; place++) {
      const row = this.shown[place];
      let cell = this.live.get(row.key);
      if (cell?.row !== row) {
        const made = buildCell(row, this.pictures);
        const hadFocus = cell?.contains(document.activeElement);
        cell?.replaceWith(made);
        if (hadFocus) made.firstChild.focus({ preventScroll: true });
        this.live.set(row.key, (cell = made));
      }
      wanted.push(cell);
      cell.firstChild.classList.toggle("at", row.key === this.at);
      cell.setAttribute("aria-setsize", this.shown.length);
      cell.setAttribute("aria-posinset", place + 1);
      Object.assign(cell.style, {
        width: `${width}px`, height: `${height}px`,
        left: `${(place % columns) * width}px`, top: `${Math.floor(place / columns) * height}px`,
      });
    }
    const kept = new Set(wanted);
    for (const [key, cell] of this.live) {
      if (!kept.has(cell)) {
        cell.remove();
        this.live.delete(key);
      }
    }
    // In the order of the list, for whoever goes from one to the next by Tab or a screen reader.
    wanted.forEach((cell, n) => {
      if (this.cells.children[n] !== cell) this.cells.insertBefore(cell, this.cells.children[n] ?? null);
    });
    this.pictures.load();
  }

  /** Mark a case and bring it into view. */
  select(key, focus = false) {
    this.at = key;
    const place = this.shown.findIndex((row) => row.key === key);
    if (place >= 0 && this.scroller.clientHeight) {
      const top = Math.floor(place / this.columns) * CELL.height;
      if (top < this.scroller.scrollTop) this.scroller.scrollTop = top;
      const bottom = top + CELL.height - this.scroller.clientHeight;
      if (bottom > this.scroller.scrollTop) this.scroller.scrollTop = bottom;
    }
    this.draw();
    if (focus) this.live.get(key)?.firstChild.focus({ preventScroll: true });
  }

  move(steps) {
    const place = this.shown.findIndex((row) => row.key === this.at);
    const next = this.shown[Math.min(this.shown.length - 1, Math.max(0, place < 0 ? 0 : place + steps))];
    if (next) this.select(next.key, true);
  }
}

function matchesReview(row, review) {
  if (review === "open") return row.mine === null;
  if (review === "others") return row.others.some((decision) => decision.choice === "reject");
  return row.mine?.choice === review;
}

function buildCell(row, pictures) {
  const item = document.createElement("li");
  item.row = row;
  const link = document.createElement("a");
  link.className = "cell";
  link.href = `#case=${encodeURIComponent(row.key)}`;
  const picture = document.createElement("div");
  picture.className = "picture";
  const thumb = document.createElement("img");
  thumb.alt = "";
  thumb.onerror = () => thumb.replaceWith(document.createTextNode(row.has.length ? "no small picture" : "no image"));
  if (row.has.length) {
    picture.append(thumb);
    pictures.ask(thumb, `thumb/${encodeURIComponent(row.key)}`);
  } else picture.append("no image");
  const mark = spellMark(row);
  if (mark) {
    const badge = document.createElement("span");
    badge.className = `mark ${mark.kind}`;
    badge.textContent = mark.text;
    picture.append(badge);
  }
  const words = document.createElement("div");
  words.className = "words";
  const name = document.createElement("b");
  name.textContent = row.attempt ? `${row.id}, attempt ${row.attempt + 1}` : row.id;
  const labels = document.createElement("span");
  labels.textContent = (row.labels.join(", ") || row.request) + (row.mm ? `, ${row.mm.toFixed(0)} mm` : "");
  words.append(name, labels);
  link.append(picture, words);
  item.append(link);
  return item;
}

export function spellMark(row) {
  if (row.mine) return { kind: row.mine.choice, text: row.mine.choice === "accept" ? "accepted" : "rejected" };
  if (row.others.some((decision) => decision.choice === "reject")) return { kind: "reject", text: "rejected by another" };
  if (row.status === "retried" || row.status === "rejected") return { kind: "failed", text: row.failed[0] ? `failed ${row.failed[0]}` : "failed" };
  return null;
}

function unique(values) {
  return [...new Set(values)].sort();
}

function fill(select, options) {
  const now = select.value;
  if (select.options.length === options.length && options.every(([value], n) => select.options[n].value === value)) return;
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  select.value = options.some(([value]) => value === now) ? now : "";
}
