// Reads the file, so that the page stays quick. Each message is {kind, …}; each answer says which request it is of.
//
//   open     {file} or {url, size}           -> opened {…, rows}, more rows, or failed
//   pattern  {request, name, shown}          -> pattern, while tiles are read; done, stopped or failed
//   values   {request, name, row, col, …}    -> values, or failed
//   forget   {}                              no answer: patterns that were asked for are not needed any more

import { BlobSource, Fault, open } from "../../spec/js/reader.js";
import { HttpSource } from "./http_source.js";
import { Density, elementText } from "./pattern.js";

const ROWS_OF_A_MESSAGE = 5000;
const MOST_TILE_BYTES = 2 ** 29;
const CACHED_BYTES = 2 ** 27;
const PAUSE_MS = 40;

let file = null;
// counts up with every `forget`: a pattern of before stops
let wanted = 0;
const tiles = new Map();

const pause = () => new Promise((resolve) => setTimeout(resolve, 0));

function failure(error) {
  if (error instanceof Fault) return { code: error.code, message: error.message.slice(error.code.length + 2) };
  if (error instanceof RangeError && /alloc|length|memory/i.test(error.message)) {
    return { code: "memory", message: "there is not enough memory for this" };
  }
  if (error.name === "NotReadableError" || error.name === "NotFoundError") {
    return { code: "file", message: "the file cannot be read any more: it was moved or changed" };
  }
  return { code: "error", message: error.message };
}

function rowOf(name) {
  const tensor = file.tensor(name);
  const alias = file.aliases.get(name);
  const stored = file.storedBytes(tensor);
  return {
    name,
    aliasOf: alias === undefined ? null : alias.of,
    isCopy: alias !== undefined && alias.copy,
    dtype: tensor.dtype.name,
    bits: tensor.dtype.bits,
    shape: tensor.shape.map(String),
    rowDims: tensor.rowDims,
    rows: tensor.rows,
    cols: tensor.cols,
    layout: tensor.layout,
    form: tensor.arrays.includes("gaps") ? "gaps" : tensor.arrays.includes("columns") ? "columns" : "",
    codecs: [...tensor.codecs].filter(([array]) => array !== "negative_zeros" || tensor.hasSigns),
    elements: tensor.elements,
    nonzeros: tensor.nnz,
    hasSigns: tensor.hasSigns,
    dropped: tensor.negativeZerosDropped,
    tiles: tensor.tiles,
    tileRows: tensor.tileRows,
    stored,
    dense: Math.ceil((tensor.elements * tensor.dtype.bits) / 8),
  };
}

async function openFile({ file: blob, url, size }) {
  file = await open(blob ? new BlobSource(blob) : new HttpSource(url, size));
  tiles.clear();
  const { minor, indexBytes, indexIsCoded, metadata, names, chunks } = file;
  const head = { minor, indexBytes, indexIsCoded, chunks: chunks.count, size: file.source.size };
  postMessage({ kind: "opened", ...head, metadata: [...metadata], tensors: names.length });
  for (let i = 0; i < names.length; i += ROWS_OF_A_MESSAGE) {
    postMessage({ kind: "rows", rows: names.slice(i, i + ROWS_OF_A_MESSAGE).map(rowOf) });
    await pause();
  }
  postMessage({ kind: "complete" });
}

function checkTiles(tensor) {
  const bytes = (Math.min(tensor.tileRows, tensor.rows) * tensor.cols * tensor.dtype.bits) / 8;
  if (bytes > MOST_TILE_BYTES) throw new Fault("decoded-bytes", "a tile of this tensor is too large for this page");
}

/** A decoded tile; those that were read last are kept. */
async function tileOf(tensor, t) {
  const key = `${t} ${tensor.name}`;
  let tile = tiles.get(key);
  if (tile === undefined) {
    checkTiles(tensor);
    tile = await file.readTile(tensor, t);
  }
  tiles.delete(key);
  tiles.set(key, tile);
  let kept = [...tiles.values()].reduce((sum, { elements }) => sum + elements.byteLength, 0);
  for (const [old, { elements }] of tiles) {
    if (kept <= CACHED_BYTES || old === key) break;
    kept -= elements.byteLength;
    tiles.delete(old);
  }
  return tile;
}

async function sendPattern({ request, name }) {
  const since = wanted;
  const tensor = file.tensor(name);
  if (tensor.tiles === 0) {
    postMessage({ kind: "done", request });
    return;
  }
  checkTiles(tensor);
  const density = new Density(tensor);
  const { gridRows, gridCols } = density;
  let stored = 0;
  let someSigns = false;
  let sent = performance.now();
  for (let t = 0; t < tensor.tiles; t++) {
    if (since !== wanted) {
      postMessage({ kind: "stopped", request });
      return;
    }
    const tile = await tileOf(tensor, t);
    density.add(t, tile.elements);
    stored += tile.stored ?? 0;
    someSigns ||= tile.someSigns;
    const isLast = t + 1 === tensor.tiles;
    if (isLast || performance.now() - sent > PAUSE_MS) {
      if (isLast) file.checkWhole(tensor, stored, someSigns);
      const read = isLast ? gridRows : density.firstCellRow(t + 1);
      const { counts, nonzeros } = density;
      postMessage({ kind: "pattern", request, counts, gridRows, gridCols, read, nonzeros, done: (t + 1) / tensor.tiles });
      sent = performance.now();
      await pause();
    }
  }
  postMessage({ kind: "done", request });
}

async function sendValues({ request, name, row, col, height, width }) {
  const tensor = file.tensor(name);
  const lines = [];
  for (let r = row; r < Math.min(row + height, tensor.rows); r++) {
    const t = Math.floor(r / tensor.tileRows);
    const { elements } = await tileOf(tensor, t);
    const first = (r - t * tensor.tileRows) * tensor.cols;
    const line = [];
    for (let c = col; c < Math.min(col + width, tensor.cols); c++) {
      line.push(elementText(tensor.dtype, elements, first + c));
    }
    lines.push(line);
  }
  postMessage({ kind: "values", request, row, col, lines });
}

const actions = { open: openFile, pattern: sendPattern, values: sendValues };

addEventListener("message", async ({ data }) => {
  if (data.kind === "forget") {
    wanted += 1;
    return;
  }
  try {
    await actions[data.kind](data);
  } catch (error) {
    postMessage({ kind: "failed", of: data.kind, request: data.request, ...failure(error) });
  }
});

postMessage({ kind: "ready" });
