// One tensor: what the index says about it, its pattern, and the values under the pointer.

import { colors, drawCells, highest, isLying, share } from "./drawing.js";
import { element, nameOf } from "./elements.js";
import { bytesText, countText, percentText, safeText, shapeText } from "./format.js";
import { startOf } from "./pattern_grid.js";

const HIGHEST = 334;
const LOWEST = 28;
const LARGEST_CELL = 48;
const VALUE_ROWS = 6;
const VALUE_COLS = 5;

export class Panel {
  constructor(place, reader, { onClose, onRead }) {
    Object.assign(this, { place, reader, onClose, onRead });
    this.row = null;
    place.hidden = true;
    place.replaceChildren();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.row !== null && this.draw());
  }

  close() {
    if (this.row === null) return;
    this.leave();
    this.row = null;
    this.place.hidden = true;
    this.onClose();
  }

  leave() {
    this.stop?.();
    this.reader.forget();
    this.reader.isBusy = false;
  }

  open(row) {
    if (this.row !== null) this.leave();
    this.row = row;
    this.pattern = row.pattern ?? null;
    this.cell = null;
    this.isAsking = false;
    this.wanted = null;
    this.canvas = element("canvas", { tabindex: "0", role: "img", class: "cells", "aria-describedby": "cell" });
    this.progress = element("progress", { max: "1", "aria-label": "Reading the pattern" });
    this.legend = element("p", { class: "legend" });
    this.note = element("p", { id: "cell", class: "cell", "aria-live": "polite" });
    this.values = element("table", { class: "values" });
    this.trouble = element("p", { class: "trouble", role: "alert", hidden: true });
    const close = element("button", { type: "button", class: "close", onclick: () => this.close() }, "Close");
    const title = element("h2", {}, nameOf(safeText(row.name)));
    const drawn = element("figure", {}, this.canvas, element("figcaption", {}, this.progress, this.legend));
    this.place.replaceChildren(
      element("div", { class: "bar-of-panel" }, title, close),
      this.trouble,
      ...(row.elements > 0 ? [drawn, this.note, this.values] : [element("p", { class: "quiet" }, "It has no elements.")]),
      facts(row),
    );
    this.place.hidden = false;
    this.place.scrollTop = 0;
    this.listen();
    this.size();
    if (row.elements === 0) return;
    if (this.pattern === null) this.read();
    else this.finish();
  }

  read() {
    const { row } = this;
    this.reader.isBusy = true;
    this.note.textContent = "";
    this.legend.textContent = "Reading…";
    this.stop = this.reader.ask({ kind: "pattern", name: row.name }, (answer) => {
      if (answer.kind === "pattern") {
        this.pattern = answer;
        this.progress.value = answer.done;
        this.draw();
        return;
      }
      this.reader.isBusy = false;
      if (answer.kind === "done") {
        row.pattern = this.pattern;
        row.nonzeros = this.pattern.nonzeros;
        this.finish();
      } else if (answer.kind === "failed") {
        row.failed = true;
        this.fail(answer);
      }
      this.onRead(row);
    });
  }

  finish() {
    const { row, pattern } = this;
    const most = highest(pattern, row);
    const whole = row.rows === pattern.gridRows && row.cols === pattern.gridCols;
    this.progress.hidden = true;
    this.legend.replaceChildren(
      element("span", {}, whole ? "zero" : "nonzeros: 0 %"),
      element("span", { class: "scale", "aria-hidden": "true" }),
      element("span", {}, whole ? "nonzero" : percentText(most, 1)),
    );
    this.draw();
    this.select(0, 0);
  }

  fail({ code, message }) {
    this.progress.hidden = true;
    this.legend.textContent = "";
    this.trouble.hidden = false;
    this.trouble.replaceChildren("This tensor cannot be read: ", element("code", {}, code), ` ${safeText(message, 300)}`);
  }

  /** Gives the canvas a size that looks like the matrix, as far as that is sensible. */
  size() {
    const { row, canvas } = this;
    const lies = isLying(row);
    const [rows, cols] = lies ? [1, row.rows] : [Math.max(row.rows, 1), Math.max(row.cols, 1)];
    const room = canvas.parentElement.clientWidth || HIGHEST;
    let width = Math.min(room, HIGHEST, cols * LARGEST_CELL);
    let height = (width * rows) / cols;
    if (height > HIGHEST) {
      width = Math.max(LOWEST * 3, (width * HIGHEST) / height);
      height = HIGHEST;
    }
    height = Math.max(height, LOWEST);
    canvas.style.width = `${Math.round(width)}px`;
    canvas.style.height = `${Math.round(height)}px`;
    canvas.width = Math.round(width * devicePixelRatio);
    canvas.height = Math.round(height * devicePixelRatio);
  }

  draw() {
    const { canvas, pattern, row, cell } = this;
    if (pattern === null) return;
    const cells = drawCells(pattern, row, colors(canvas));
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(cells, 0, 0, canvas.width, canvas.height);
    const name = `Pattern of ${row.rows} rows and ${row.cols} columns`;
    canvas.setAttribute("aria-label", name);
    if (cell === null) return;
    const [x, y] = isLying(row) ? [cell.r, cell.c] : [cell.c, cell.r];
    const [dx, dy] = [canvas.width / cells.width, canvas.height / cells.height];
    const line = Math.max(1, Math.round(1.5 * devicePixelRatio));
    // a frame that is seen on every color
    context.lineWidth = 3 * line;
    context.strokeStyle = getComputedStyle(canvas).backgroundColor;
    const [left, top] = [Math.max(line, x * dx - line), Math.max(line, y * dy - line)];
    const right = Math.min(canvas.width - line, (x + 1) * dx + line);
    const bottom = Math.min(canvas.height - line, (y + 1) * dy + line);
    context.strokeRect(left, top, right - left, bottom - top);
    context.lineWidth = line;
    context.strokeStyle = getComputedStyle(canvas).getPropertyValue("--mark");
    context.strokeRect(left, top, right - left, bottom - top);
  }

  listen() {
    const { canvas } = this;
    const at = (event) => {
      if (this.pattern === null) return;
      const { left, top, width, height } = canvas.getBoundingClientRect();
      const across = (event.clientX - left) / width;
      const down = (event.clientY - top) / height;
      const { gridRows, gridCols } = this.pattern;
      if (isLying(this.row)) this.select(Math.floor(across * gridRows), 0);
      else this.select(Math.floor(down * gridRows), Math.floor(across * gridCols));
    };
    canvas.addEventListener("pointermove", at);
    canvas.addEventListener("pointerdown", at);
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] };
      const lying = { ArrowRight: [1, 0], ArrowLeft: [-1, 0] };
      const step = (isLying(this.row) ? lying : steps)[event.key];
      if (step === undefined || this.cell === null) return;
      event.preventDefault();
      this.select(this.cell.r + step[0], this.cell.c + step[1]);
    });
  }

  /** Says what is in a cell, and asks for the values there. */
  select(r, c) {
    const { pattern, row } = this;
    const { gridRows, gridCols } = pattern;
    r = Math.max(0, Math.min(r, gridRows - 1));
    c = Math.max(0, Math.min(c, gridCols - 1));
    if (r >= pattern.read || (this.cell !== null && this.cell.r === r && this.cell.c === c)) return;
    this.cell = { r, c };
    this.draw();
    const [top, left] = [startOf(r, gridRows, row.rows), startOf(c, gridCols, row.cols)];
    const [bottom, right] = [startOf(r + 1, gridRows, row.rows) - 1, startOf(c + 1, gridCols, row.cols) - 1];
    const part = share(pattern, row, r, c);
    const where = isLying(row)
      ? range("Element", top, bottom)
      : `${inMatrix(row, top, bottom)}, ${range("column", left, right)}`;
    const single = top === bottom && left === right;
    this.note.textContent = single ? where : `${where}: ${percentText(1 - part, 1)} zeros`;
    const lies = isLying(row);
    const height = lies ? VALUE_ROWS * VALUE_COLS : VALUE_ROWS;
    const first = Math.max(0, Math.min(top, row.rows - height));
    this.wanted = { row: first, col: Math.max(0, Math.min(left, row.cols - VALUE_COLS)), height, width: VALUE_COLS };
    this.askForValues();
  }

  /** One request at a time: while it is answered, only the last place that was pointed at is kept. */
  askForValues() {
    if (this.isAsking || this.wanted === null) return;
    const { row, wanted } = this;
    this.wanted = null;
    this.isAsking = true;
    this.reader.ask({ kind: "values", name: row.name, ...wanted }, (answer) => {
      if (this.row !== row) return;
      this.isAsking = false;
      if (answer.kind === "values") this.showValues(answer);
      else this.fail(answer);
      this.askForValues();
    });
  }

  showValues({ row: top, col: left, lines }) {
    const { row, pattern, cell } = this;
    if (isLying(row)) {
      this.showVector(top, lines);
      return;
    }
    const inRows = [startOf(cell.r, pattern.gridRows, row.rows), startOf(cell.r + 1, pattern.gridRows, row.rows)];
    const inCols = [startOf(cell.c, pattern.gridCols, row.cols), startOf(cell.c + 1, pattern.gridCols, row.cols)];
    const head = element("tr", {}, element("td"));
    for (let c = 0; c < lines[0].length; c++) head.append(element("th", { scope: "col" }, String(left + c)));
    const body = lines.map((line, r) => {
      const within = top + r >= inRows[0] && top + r < inRows[1];
      const cells = line.map((text, c) => value(text, within && left + c >= inCols[0] && left + c < inCols[1]));
      return element("tr", {}, element("th", { scope: "row" }, String(top + r)), ...cells);
    });
    this.values.replaceChildren(head, ...body);
  }

  /** Elements of one dimension, some in each line. */
  showVector(first, lines) {
    const { row, pattern, cell } = this;
    const [from, to] = [startOf(cell.r, pattern.gridRows, row.rows), startOf(cell.r + 1, pattern.gridRows, row.rows)];
    const body = [];
    for (let i = 0; i < lines.length; i += VALUE_COLS) {
      const cells = lines.slice(i, i + VALUE_COLS).map(([text], k) => value(text, first + i + k >= from && first + i + k < to));
      body.push(element("tr", {}, element("th", { scope: "row" }, String(first + i)), ...cells));
    }
    this.values.replaceChildren(...body);
  }
}

const range = (what, first, last) => (first === last ? `${what} ${first}` : `${what}s ${first}–${last}`);

/** Rows, and of a stack the matrices that they are of. */
function inMatrix(row, top, bottom) {
  if (row.rowDims === 1) return range("Row", top, bottom);
  const height = Number(row.shape[row.rowDims - 1]);
  const [first, last] = [Math.floor(top / height), Math.floor(bottom / height)];
  if (first < last) return range("Matrix", first, last).replace("Matrixs", "Matrices");
  return `Matrix ${first}, ${range("row", top - first * height, bottom - first * height)}`;
}

function value(text, isWithin) {
  const cell = element("td", { title: text }, text);
  if (text === "0" || text === "-0" || text === "0+0i") cell.classList.add("zero");
  if (isWithin) cell.classList.add("within");
  return cell;
}

function facts(row) {
  const lines = [];
  const add = (term, ...said) => lines.push(element("div", {}, element("dt", {}, term), element("dd", {}, ...said)));
  if (row.aliasOf !== null) add(row.isCopy ? "a copy of" : "the same as", element("bdi", {}, safeText(row.aliasOf)));
  add("shape", shapeText(row.shape, row.rowDims));
  add("dtype", `${row.dtype}, ${row.bits} bits`);
  add("layout", row.form === "" ? row.layout : `${row.layout}, ${row.form}`);
  add("elements", countText(row.elements));
  if (row.layout !== "dense") add("stored", `${countText(row.nonzeros)}, ${percentText(row.nonzeros, row.elements)}`);
  add("in the file", `${bytesText(row.stored)} of ${bytesText(row.dense)} dense`);
  add("tiles", row.tiles > 1 ? `${countText(row.tiles)}, of ${countText(row.tileRows)} rows` : String(row.tiles));
  if (row.hasSigns) add("zeros", "some are -0.0; their signs are kept");
  if (row.dropped > 0) add("signs", `${countText(row.dropped)} of zeros were dropped`);
  const codecs = row.codecs.map(([array, codec]) => element("li", {}, `${array} `, element("span", {}, codec)));
  add("arrays", element("ul", { class: "codecs" }, ...codecs));
  return element("dl", { class: "facts" }, ...lines);
}
