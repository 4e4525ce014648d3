// The page: opens a file in the worker, and shows what that says. Whatever comes from a file is put in as text.

import { bytesText, countText, percentText, safeText } from "./format.js";
import { Panel } from "./panel.js";
import { element } from "./elements.js";
import { Table, COLUMNS } from "./table.js";

const byId = (id) => document.getElementById(id);
const MOST_METADATA = 200;

let reader = null;
let table = null;
let panel = null;
let rows = [];

function show(...ids) {
  for (const id of ["start", "problem", "opening", "loaded"]) byId(id).hidden = !ids.includes(id);
  byId("another").hidden = ids.includes("start");
}

/** The worker, and who waits for what of it. */
class Reader {
  constructor(onMessage) {
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.waiting = new Map();
    this.requests = 0;
    // whether the panel reads a tensor: small patterns of the table wait for it
    this.isBusy = false;
    this.worker.addEventListener("message", ({ data }) => {
      const waits = this.waiting.get(data.request);
      if (data.request === undefined) onMessage(data);
      else if (waits !== undefined) waits(data);
    });
    this.worker.addEventListener("error", (event) => {
      onMessage({ kind: "failed", of: "open", code: "error", message: event.message || "the reader could not be started" });
    });
  }

  open(what) {
    this.worker.postMessage({ kind: "open", ...what });
  }

  /** Asks for something; `then` is called with each answer. Returns what ends that. */
  ask(message, then) {
    const request = ++this.requests;
    this.waiting.set(request, (data) => {
      if (data.kind !== "pattern") this.waiting.delete(request);
      then(data);
    });
    this.worker.postMessage({ ...message, request });
    return () => this.waiting.delete(request);
  }

  /** Patterns that were asked for are not needed any more. */
  forget() {
    this.worker.postMessage({ kind: "forget" });
  }

  end() {
    this.worker.terminate();
  }
}

function openFile(name, what) {
  if (reader !== null) reader.end();
  rows = [];
  byId("file-name").textContent = safeText(name, 200);
  document.title = `${safeText(name, 100)} – sparsefmt`;
  show("opening");
  reader = new Reader(receive);
  panel = new Panel(byId("panel"), reader, {
    onClose: () => table.focus(),
    onRead: (row) => table.redraw(row),
  });
  table = new Table(byId("scroll"), byId("table"), reader, (row) => panel.open(row));
  reader.open(what);
}

function receive(data) {
  if (data.kind === "opened") {
    showHead(data);
    show("loaded");
    table.measure();
  } else if (data.kind === "rows") {
    rows.push(...data.rows);
    table.add(data.rows);
    showCount();
  } else if (data.kind === "complete") {
    table.complete();
    showTotals();
  } else if (data.kind === "failed") {
    byId("problem-text").replaceChildren(element("code", {}, data.code), ` ${safeText(data.message, 400)}`);
    show("problem", "start");
  }
}

let head = null;
function showHead(data) {
  head = data;
  const { metadata } = data;
  const details = byId("metadata");
  details.hidden = metadata.length === 0;
  details.open = false;
  details.firstElementChild.textContent = `Metadata, ${countText(metadata.length)} ${metadata.length === 1 ? "text" : "texts"}`;
  const shown = metadata.slice(0, MOST_METADATA).flatMap(([key, text]) => [
    element("dt", {}, element("bdi", {}, safeText(key, 200))),
    element("dd", {}, element("bdi", {}, safeText(text, 2000))),
  ]);
  if (metadata.length > MOST_METADATA) shown.push(element("dt", {}, `and ${metadata.length - MOST_METADATA} more`));
  details.lastElementChild.replaceChildren(...shown);
  byId("search").value = "";
  showTotals();
}

function showTotals() {
  const own = rows.filter((row) => row.aliasOf === null);
  const sum = (of) => own.reduce((total, row) => total + of(row), 0);
  const elements = sum((row) => row.elements);
  const dense = sum((row) => row.dense);
  const sparse = own.filter((row) => row.layout !== "dense");
  const inSparse = sparse.reduce((total, row) => total + row.elements, 0);
  const zeros = sparse.reduce((total, row) => total + row.elements - row.nonzeros, 0);
  const facts = [
    ["File", bytesText(head.size), comparison(dense, head.size)],
    ["Tensors", countText(head.tensors), `${countText(sparse.length)} sparse`],
    ["Weights", countText(elements), elements > 0 ? `${((8 * head.size) / elements).toFixed(2)} bits each` : ""],
    ["Zeros", percentText(zeros, inSparse), inSparse > 0 ? "of the sparse tensors" : "no sparse tensors"],
    ["Index", bytesText(head.indexBytes), `${head.indexIsCoded ? "coded, " : ""}format 1.${head.minor}`],
  ];
  byId("totals").replaceChildren(
    ...facts.map(([term, value, more]) =>
      element("div", {}, element("dt", {}, term), element("dd", {}, element("strong", {}, value), element("span", {}, more))),
    ),
  );
}

function comparison(dense, size) {
  if (dense < size) return `of ${bytesText(dense)} dense`;
  const ratio = dense / size;
  return `${ratio.toFixed(ratio < 9.995 ? 2 : 0)}× smaller than dense`;
}

function showCount() {
  const { shown, total } = table;
  byId("count").textContent = shown === total ? "" : `${shown.toLocaleString("en-US")} of ${total.toLocaleString("en-US")}`;
}

function take(files) {
  if (files.length > 0) openFile(files[0].name, { file: files[0] });
}

function listen() {
  const input = byId("file");
  for (const id of ["choose", "another"]) byId(id).addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    take(input.files);
    input.value = "";
  });
  let search = 0;
  byId("search").addEventListener("input", ({ target }) => {
    clearTimeout(search);
    search = setTimeout(() => {
      table.filter(target.value);
      showCount();
    }, 80);
  });
  const sort = byId("sort");
  for (const { key, title } of COLUMNS) if (title !== "") sort.append(element("option", { value: key }, title));
  sort.value = "name";
  sort.addEventListener("change", () => table.sort(sort.value));
  byId("table").addEventListener("sorted", ({ detail }) => (sort.value = detail));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && panel !== null) panel.close();
    if (event.key === "/" && !(event.target instanceof HTMLInputElement) && !byId("loaded").hidden) {
      event.preventDefault();
      byId("search").focus();
    }
  });
  // a file can be dropped anywhere
  let depth = 0;
  const isFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragenter", (event) => {
    if (isFile(event)) byId("over").hidden = ++depth === 0;
  });
  addEventListener("dragleave", (event) => {
    if (isFile(event)) byId("over").hidden = --depth <= 0;
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    byId("over").hidden = true;
    take(event.dataTransfer.files);
  });
}

byId("without-script").remove();
listen();
show("start");
// `sparsefmt view` says here which file it serves
const served = document.querySelector("meta[name=sparsefmt-file]");
if (served !== null) openFile(served.dataset.name, { url: new URL(served.content, location).href, size: +served.dataset.size });
