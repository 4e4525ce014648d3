// The table of tensors. Only the rows that are seen are in the page, however many there are.

import { colors, drawCells, isLying } from "./drawing.js";
import { element, nameOf } from "./elements.js";
import { bytesText, percentText, safeText, shapeText } from "./format.js";

const HIGHEST_PIXELS = 2e7;
const MOST_NATURAL = 50000;
/** Elements up to which a pattern is read as soon as its row is seen. */
const SMALL = 2 ** 23;

const zeros = (row) => (row.nonzeros === null || row.elements === 0 ? -1 : 1 - row.nonzeros / row.elements);
const bits = (row) => (row.elements === 0 ? 0 : (8 * row.stored) / row.elements);

/** Columns: `by` is what is sorted by; those of numbers begin with the largest. */
export const COLUMNS = [
  { key: "pattern", title: "" },
  { key: "name", title: "Name", by: (row) => row.name },
  { key: "shape", title: "Shape", by: (row) => row.elements, number: true },
  { key: "dtype", title: "Dtype", by: (row) => row.dtype },
  { key: "layout", title: "Layout", by: (row) => row.layout },
  { key: "zeros", title: "Zeros", by: zeros, number: true },
  { key: "bytes", title: "Bytes", by: (row) => row.stored, number: true },
  { key: "bits", title: "Bits a weight", by: bits, number: true },
];

export class Table {
  constructor(scroll, table, reader, open) {
    Object.assign(this, { scroll, table, reader, open });
    this.body = table.tBodies[0];
    this.rows = [];
    this.order = [];
    this.words = [];
    this.key = "name";
    this.isDown = false;
    this.current = 0;
    this.rowHeight = 44;
    this.reading = null;
    this.isComplete = false;
    this.drawn = "";
    this.drawHead();
    // a table of before may still listen on these elements
    scroll.onscroll = () => this.draw();
    scroll.onkeydown = (event) => this.press(event);
    scroll.scrollTop = 0;
    this.body.onclick = ({ target }) => {
      const line = target.closest("tr[aria-rowindex]");
      if (line !== null) this.choose(+line.getAttribute("aria-rowindex") - 2);
    };
    onresize = () => this.measure();
    matchMedia("(prefers-color-scheme: dark)").onchange = () => this.draw(true);
  }

  get shown() {
    return this.order.length;
  }

  get total() {
    return this.rows.length;
  }

  focus() {
    this.scroll.focus();
  }

  drawHead() {
    const cells = COLUMNS.map(({ key, title, number }) => {
      const cell = element("th", { scope: "col", class: number ? `${key} number` : key });
      if (title === "") cell.append(element("span", { class: "unseen" }, "Pattern"));
      else cell.append(element("button", { type: "button", onclick: () => this.sort(key) }, title));
      return cell;
    });
    this.table.tHead.rows[0].replaceChildren(...cells);
    this.markHead();
  }

  /** Says which column the rows are sorted by. */
  markHead() {
    COLUMNS.forEach(({ key, title }, i) => {
      const direction = this.isDown ? "descending" : "ascending";
      if (title !== "") this.table.tHead.rows[0].cells[i].setAttribute("aria-sort", key === this.key ? direction : "none");
    });
  }

  add(rows) {
    const empty = this.rows.length === 0;
    for (const row of rows) {
      if (this.matches(row)) this.order.push(this.rows.length);
      this.rows.push(row);
    }
    this.draw(empty);
  }

  /** All rows are there. */
  complete() {
    this.isComplete = true;
    this.arrange();
  }

  filter(text) {
    this.words = text.toLowerCase().split(/\s+/).filter((word) => word !== "");
    this.arrange();
  }

  matches(row) {
    if (this.words.length === 0) return true;
    const text = `${row.name} ${row.dtype} ${row.layout} ${row.form}`.toLowerCase();
    return this.words.every((word) => text.includes(word));
  }

  sort(key) {
    const { number } = COLUMNS.find((column) => column.key === key);
    this.isDown = key === this.key ? !this.isDown : number === true;
    this.key = key;
    this.markHead();
    this.arrange();
    this.table.dispatchEvent(new CustomEvent("sorted", { detail: key }));
  }

  arrange() {
    const { rows } = this;
    const chosen = this.rows[this.order[this.current]];
    const order = [];
    rows.forEach((row, i) => {
      if (this.matches(row)) order.push(i);
    });
    const { by } = COLUMNS.find(({ key }) => key === this.key);
    const keys = rows.map(by);
    let compare = (a, b) => (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : a - b);
    if (typeof keys[0] === "string" && order.length <= MOST_NATURAL) {
      // layers.2 before layers.10
      const natural = new Intl.Collator("en", { numeric: true });
      compare = (a, b) => natural.compare(keys[a], keys[b]) || a - b;
    }
    const sign = this.isDown ? -1 : 1;
    this.order = order.sort((a, b) => sign * compare(a, b));
    this.current = Math.max(0, this.opened === undefined ? 0 : this.order.findIndex((i) => rows[i] === chosen));
    this.scroll.scrollTop = 0;
    this.draw(true);
  }

  measure() {
    const height = parseFloat(getComputedStyle(this.table).getPropertyValue("--row"));
    if (height > 0) this.rowHeight = height;
    this.draw(true);
  }

  /** Puts the rows that are seen into the page. */
  draw(anew = false) {
    const { scroll, rowHeight: height } = this;
    const n = this.order.length;
    const room = Math.ceil(scroll.clientHeight / height) + 1;
    const most = Math.max(0, n - Math.floor(scroll.clientHeight / height));
    const whole = n * height;
    const scaled = whole > HIGHEST_PIXELS;
    let first = Math.floor(scroll.scrollTop / height);
    if (scaled) first = Math.floor((scroll.scrollTop / (HIGHEST_PIXELS - scroll.clientHeight)) * most);
    first = Math.max(0, Math.min(first - 4, most));
    const end = Math.min(n, first + room + 8);
    const what = `${first} ${end} ${n} ${this.current}`;
    if (!anew && what === this.drawn) return;
    this.drawn = what;
    const before = scaled ? Math.max(0, scroll.scrollTop - 4 * height) : first * height;
    const behind = Math.max(0, (scaled ? HIGHEST_PIXELS : whole) - before - (end - first) * height);
    const lines = [];
    for (let i = first; i < end; i++) lines.push(this.line(i));
    this.body.replaceChildren(space(before), ...lines, space(behind));
    this.table.setAttribute("aria-rowcount", n + 1);
    if (n === 0 && this.isComplete) {
      const said = this.rows.length === 0 ? "The file has no tensors." : "No tensor matches.";
      this.body.replaceChildren(element("tr", {}, element("td", { colspan: "8", class: "none" }, said)));
    }
    const hasCurrent = this.current >= first && this.current < end;
    if (hasCurrent) scroll.setAttribute("aria-activedescendant", `row-${this.current}`);
    else scroll.removeAttribute("aria-activedescendant");
    this.seen = this.order.slice(first, end).map((row) => this.rows[row]);
    this.readNext();
  }

  line(i) {
    const row = this.rows[this.order[i]];
    const line = element("tr", { id: `row-${i}`, "aria-rowindex": i + 2, "aria-selected": String(row === this.opened) });
    if (i === this.current) line.classList.add("current");
    const name = element("td", { class: "name" }, nameOf(safeText(row.name)));
    name.title = safeText(row.name);
    line.append(this.patternCell(row), name);
    if (row.aliasOf !== null) {
      const what = row.isCopy ? "a copy of " : "the same as ";
      line.append(element("td", { class: "alias", colspan: "6" }, what, element("bdi", {}, safeText(row.aliasOf))));
      return line;
    }
    line.append(
      element("td", { class: "shape number" }, shapeText(row.shape, row.rowDims)),
      element("td", { class: "dtype" }, row.dtype),
      element("td", { class: "layout" }, row.layout),
      zerosCell(row),
      element("td", { class: "bytes number" }, bytesText(row.stored)),
      element("td", { class: "bits number" }, row.elements === 0 ? "–" : bits(row).toFixed(2)),
    );
    return line;
  }

  patternCell(row) {
    const cell = element("td", { class: "pattern" });
    const canvas = element("canvas", { width: "1", height: "1", "aria-hidden": "true" });
    cell.append(canvas);
    if (row.elements === 0) canvas.remove();
    else if (row.pattern === undefined) canvas.className = row.failed ? "failed" : "unread";
    else {
      canvas.className = "read";
      queueMicrotask(() => {
        if (!canvas.isConnected) return;
        const cells = drawCells(row.pattern, row, colors(canvas));
        canvas.width = 28 * devicePixelRatio;
        canvas.height = 28 * devicePixelRatio;
        const context = canvas.getContext("2d");
        context.imageSmoothingEnabled = cells.width > canvas.width;
        context.imageSmoothingQuality = "high";
        // a vector is a strip
        const height = isLying(row) ? canvas.height / 4 : canvas.height;
        context.drawImage(cells, 0, (canvas.height - height) / 2, canvas.width, height);
      });
    }
    return cell;
  }

  /** Reads the pattern of the next small tensor that is seen. */
  readNext() {
    if (!this.isComplete || this.reading !== null || this.reader.isBusy) return;
    const isNext = (row) => row.pattern === undefined && !row.failed && row.elements > 0 && row.elements <= SMALL;
    const row = this.seen.find((one) => isNext(one) && one.aliasOf === null);
    if (row === undefined) return;
    this.reading = row;
    let last;
    this.reader.ask({ kind: "pattern", name: row.name }, (answer) => {
      if (answer.kind === "pattern") {
        last = answer;
        return;
      }
      this.reading = null;
      if (answer.kind === "failed") row.failed = true;
      if (answer.kind === "done") {
        row.pattern = last;
        row.nonzeros = last.nonzeros;
      }
      this.redraw(row);
    });
  }

  /** More is known of a row now. */
  redraw(row) {
    if (this.seen.includes(row)) this.draw(true);
    this.readNext();
  }

  press(event) {
    const page = Math.max(1, Math.floor(this.scroll.clientHeight / this.rowHeight) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.target !== this.scroll) return;
    if (event.key === "Enter" || event.key === " ") this.choose(this.current);
    else if (event.key in steps) this.move(this.current + steps[event.key]);
    else return;
    event.preventDefault();
  }

  move(to) {
    const n = this.order.length;
    this.current = Math.max(0, Math.min(n - 1, to));
    const { scroll, rowHeight: height } = this;
    const head = this.table.tHead.offsetHeight;
    const room = scroll.clientHeight - head;
    if (n * height > HIGHEST_PIXELS) scroll.scrollTop = (this.current / n) * (HIGHEST_PIXELS - scroll.clientHeight);
    else if (this.current * height < scroll.scrollTop) scroll.scrollTop = this.current * height;
    else if ((this.current + 1) * height > scroll.scrollTop + room) scroll.scrollTop = (this.current + 1) * height - room;
    this.draw(true);
  }

  choose(i) {
    const row = this.rows[this.order[i]];
    if (row === undefined) return;
    this.current = i;
    this.opened = row;
    this.draw(true);
    this.open(row);
    this.measure();
  }
}

function space(height) {
  const line = element("tr", { class: "space", "aria-hidden": "true" });
  line.style.height = `${height}px`;
  return line;
}

function zerosCell(row) {
  const cell = element("td", { class: "zeros number" });
  if (row.nonzeros === null || row.elements === 0) {
    cell.append("–");
    cell.title = row.elements === 0 ? "no elements" : "known once the tensor was read";
    return cell;
  }
  const bar = element("span", { class: "bar", "aria-hidden": "true" }, element("span"));
  bar.firstChild.style.width = `${100 * (1 - row.nonzeros / row.elements)}%`;
  cell.append(bar, element("span", { class: "share" }, percentText(row.elements - row.nonzeros, row.elements)));
  return cell;
}
