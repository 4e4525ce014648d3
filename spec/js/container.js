// Section 2 of SPEC.md: opening a file, steps 1 to 12 of section 7.

import { DTYPES } from "./dtypes.js";
import {
  Fault,
  MAX_CHUNK_BYTES,
  MAX_CODED_INDEX_BYTES,
  MAX_INDEX_BYTES,
  MAX_INDEX_RATIO,
  MAX_METADATA_BYTES,
  MAX_MODEL_BYTES,
  MAX_NAME_BYTES,
  MAX_NDIM,
  MAX_RANS_RATIO,
  MAX_SPARSE_COLS,
  MAX_SPARSE_TILE_POSITIONS,
  MAX_SPARSE_TILE_ROWS,
  MAX_TENSORS,
  MAX_TENSOR_BITS,
  MAX_ZSTD_RATIO,
  require,
} from "./faults.js";
import { isFrame, readContent, readHeader } from "./frames.js";
import { decode } from "./msgpack.js";
import { xxh64 } from "./xxh64.js";

const MAGIC = [0x89, 0x53, 0x50, 0x46, 0x0d, 0x0a, 0x1a, 0x0a];
const END_MAGIC = [0x0a, 0x1a, 0x0a, 0x0d, 0x46, 0x50, 0x53, 0x89];
const MINOR = 0;
const PREAMBLE = 16;
const TRAILER = 20;
const RATIOS = { raw: 1, zstd: MAX_ZSTD_RATIO, rans: MAX_RANS_RATIO };
const FORMS = {
  dense: [["values"]],
  bitmask: [["mask", "slice_offsets", "values"]],
  permuted: [
    ["columns", "row_counts", "row_permutation", "slice_offsets", "values"],
    ["gaps", "row_counts", "row_permutation", "slice_offsets", "values"],
  ],
};
const MAX_INTEGER = (1n << 63n) - 1n;

const utf8 = new TextEncoder();
const isInteger = (value) => typeof value === "number" || typeof value === "bigint";
const isText = (value) => typeof value === "string";
const isMap = (value) => value instanceof Map;
const isBinary = (value) => value instanceof Uint8Array;
const isZero = (bytes) => bytes.every((byte) => byte === 0);

/**
 * Reads preamble, trailer and index; source: {size, read(start, end)}, which resolves to a Uint8Array of just these bytes.
 *
 * Resolves to {source, minor, indexBytes, indexIsCoded, metadata, tensors, aliases, names, chunks}. Rejects with a Fault.
 */
export async function openContainer(source) {
  const preamble = await source.read(0, Math.min(PREAMBLE, source.size));
  require(
    preamble.length >= 8 && MAGIC.every((byte, i) => preamble[i] === byte),
    "not-sparsefmt",
    "the file does not begin like one of sparsefmt",
  );
  require(source.size >= PREAMBLE + TRAILER, "file-too-short", `a file of ${source.size} bytes`);
  const head = new DataView(preamble.buffer, preamble.byteOffset, PREAMBLE);
  require(head.getUint16(8, true) === 1, "version-unsupported", `version ${head.getUint16(8, true)} of the format`);
  const minor = head.getUint16(10, true);
  require(head.getUint32(12, true) === 0, "feature-unsupported", "a feature that version 1.0 does not have");
  const end = source.size - TRAILER;
  const trailer = await source.read(end, source.size);
  require(END_MAGIC.every((byte, i) => trailer[12 + i] === byte), "trailer-missing", "the file was cut off");
  const tail = new DataView(trailer.buffer, trailer.byteOffset, TRAILER);
  const indexBytes = tail.getUint32(0, true);
  require(indexBytes <= MAX_INDEX_BYTES, "index-size", `an index of ${indexBytes} bytes`);
  const indexStart = end - indexBytes;
  require(indexStart >= PREAMBLE, "index-out-of-bounds", "the index begins before byte 16");
  const summed = new Uint8Array(PREAMBLE + indexBytes);
  summed.set(preamble.subarray(0, PREAMBLE));
  summed.set(await source.read(indexStart, end), PREAMBLE);
  require(xxh64(summed) === tail.getBigUint64(4, true), "index-checksum", "preamble or index were changed");
  const stored = summed.subarray(PREAMBLE);
  const indexIsCoded = isFrame(stored);
  const index = readIndex(decode(indexIsCoded ? decodeIndex(stored) : stored), minor);
  const chunks = readChunkTable(index.table);
  placeChunks(chunks, indexStart);
  const first = chunks.count > 0 ? chunks.offsets[0] : indexStart;
  require(isZero(await source.read(PREAMBLE, first)), "padding-not-zero", "a byte before the first chunk");
  assignChunks(index.tensors, chunks);
  for (const tensor of index.tensors.values()) checkRecords(tensor, chunks);
  const { metadata, tensors, aliases, names } = index;
  return { source, minor, indexBytes, indexIsCoded, metadata, tensors, aliases, names, chunks };
}

function decodeIndex(frame) {
  require(frame.length >= 32, "index-frame", "a coded index of fewer than 32 bytes");
  const header = readHeader(frame, "index-frame", "index-frame");
  require(header.contentSize <= MAX_CODED_INDEX_BYTES, "index-size", `a coded index of ${header.contentSize} bytes`);
  require(header.contentSize <= MAX_INDEX_RATIO * frame.length, "index-frame", "an index over 32 times its bytes");
  return readContent(frame, header, "index-frame");
}

// ------------------------------------------------------------------------------------------------ the index as objects

/** Splits an array with fields into its elements and its fields. */
function fieldsOf(what, value, count) {
  require(Array.isArray(value), "index-type", `${what} that is no array`);
  require(value.length === count || value.length === count + 1, "index-key", `${what} of ${value.length} elements`);
  if (value.length === count) return [value, new Map()];
  const fields = value[count];
  require(isMap(fields), "index-type", `fields of ${what} that are no map`);
  require(fields.size > 0, "index-not-canonical", `fields of ${what} that are empty`);
  return [value, fields];
}

function checkKeys(what, map, known, minor) {
  if (minor > MINOR) return;
  for (const key of map.keys()) require(known.includes(key), "index-key", `an unknown key of ${what}: ${key}`);
}

/** The value under a key; undefined if it is not there. */
function optional(map, key, isOfType, what) {
  const value = map.get(key);
  require(value === undefined || isOfType(value), "index-type", `${key} that is no ${what}`);
  return value;
}

/** An integer of an entry, as a BigInt; undefined if it is not there. */
function integer(map, key) {
  const value = optional(map, key, isInteger, "integer");
  if (value === undefined) return undefined;
  require(value <= MAX_INTEGER, "index-type", `${key} over 2^63 - 1`);
  return BigInt(value);
}

function readIndex(value, minor) {
  const [[table, kindValues, tensorValues], fields] = fieldsOf("the index", value, 3);
  checkKeys("the index", fields, ["metadata"], minor);
  require(isBinary(table), "index-type", "a chunk table that is no bin");
  require(Array.isArray(kindValues), "index-type", "kinds that are no array");
  require(isMap(tensorValues), "index-type", "tensors that are no map");
  require(tensorValues.size <= MAX_TENSORS, "tensor-count", `${tensorValues.size} tensors`);
  for (const name of tensorValues.keys()) checkName(name);
  const metadata = readMetadata(fields);
  const kinds = kindValues.map((kind) => readKind(kind, minor));
  const tensors = new Map();
  const aliases = new Map();
  const used = new Set();
  for (const [name, value] of tensorValues) {
    if (isMap(value)) aliases.set(name, readAlias(value, minor));
    else {
      const tensor = readEntry(name, value, kinds, minor);
      used.add(tensor.kind);
      tensors.set(name, tensor);
    }
  }
  for (const [name, { of, copy }] of aliases) {
    const isCopy = !copy && aliases.has(of) && aliases.get(of).copy;
    require(tensors.has(of) || isCopy, "alias-invalid", `${name} stands for ${of}, which it may not`);
  }
  require(used.size === kinds.length, "kind-invalid", "a kind that no tensor is of");
  return { table, tensors, aliases, metadata, names: [...tensorValues.keys()] };
}

function checkName(name) {
  require(name !== "" && !name.includes("\0"), "name-invalid", "a name that is empty or has NUL");
  require(utf8.encode(name).length <= MAX_NAME_BYTES, "name-length", "a name of over 1024 bytes");
}

function readMetadata(fields) {
  const metadata = optional(fields, "metadata", isMap, "map");
  if (metadata === undefined) return new Map();
  require(metadata.size > 0, "index-not-canonical", "metadata that is empty");
  let bytes = 0;
  for (const [key, text] of metadata) {
    require(isText(text), "metadata-invalid", `metadata ${key} is no str`);
    bytes += utf8.encode(key).length + utf8.encode(text).length;
  }
  require(bytes <= MAX_METADATA_BYTES, "metadata-size", `metadata of ${bytes} bytes`);
  return metadata;
}

function readKind(value, minor) {
  const [[name], fields] = fieldsOf("a kind", value, 1);
  checkKeys("a kind", fields, ["arrays", "layout"], minor);
  require(isText(name), "index-type", "a dtype that is no str");
  const layout = optional(fields, "layout", isText, "str") ?? "dense";
  require(!(fields.has("layout") && layout === "dense"), "index-not-canonical", "layout dense need not be there");
  require(Object.hasOwn(FORMS, layout), "layout-unknown", `layout ${layout}`);
  const dtype = DTYPES.get(name);
  require(dtype !== undefined, "dtype-unknown", `dtype ${name}`);
  let codecs = optional(fields, "arrays", isMap, "map");
  if (codecs === undefined) {
    require(layout === "dense", "index-key", `no arrays of layout ${layout}`);
    codecs = new Map([["values", "raw"]]);
  } else {
    for (const codec of codecs.values()) require(isText(codec), "index-type", "a codec that is no str");
    const plain = layout === "dense" && codecs.size === 1 && codecs.get("values") === "raw";
    require(!plain, "index-not-canonical", "arrays that need not be there");
  }
  const arrays = [...codecs.keys()];
  const others = arrays.filter((array) => array !== "negative_zeros");
  const known = FORMS[layout].some((form) => form.length === others.length && form.every((a, i) => others[i] === a));
  require(known, "array-set", `arrays ${arrays.join(", ")} of layout ${layout}`);
  const hasSigns = others.length < arrays.length;
  const canHaveSigns = layout !== "dense" && dtype.negativeZero !== null;
  require(canHaveSigns || !hasSigns, "array-set", `negative_zeros of ${name} in layout ${layout}`);
  for (const codec of codecs.values()) require(Object.hasOwn(RATIOS, codec), "codec-unknown", `codec ${codec}`);
  return { dtype, layout, codecs, arrays, hasSigns };
}

function readAlias(value, minor) {
  checkKeys("an alias", value, ["alias_of", "copy_of"], minor);
  const aliasOf = optional(value, "alias_of", isText, "str");
  const copyOf = optional(value, "copy_of", isText, "str");
  require((aliasOf === undefined) !== (copyOf === undefined), "index-key", "an alias without one of its two keys");
  return { of: aliasOf ?? copyOf, copy: copyOf !== undefined };
}

const ENTRY_KEYS = ["first_chunk", "models", "negative_zeros_dropped", "nnz", "row_dims", "tile_rows"];

function readEntry(name, value, kinds, minor) {
  const [[number, dims], fields] = fieldsOf("an entry", value, 2);
  checkKeys("an entry", fields, ENTRY_KEYS, minor);
  require(isInteger(number), "index-type", "a kind that is no integer");
  require(number <= MAX_INTEGER, "index-type", "a kind over 2^63 - 1");
  require(number < kinds.length, "kind-invalid", `kind ${number} of ${kinds.length}`);
  const kind = kinds[Number(number)];
  require(Array.isArray(dims), "index-type", "a shape that is no array");
  for (const dim of dims) {
    require(isInteger(dim) && dim <= MAX_INTEGER, "index-type", "a dimension that is no integer below 2^63");
  }
  const given = {
    firstChunk: integer(fields, "first_chunk"),
    dropped: integer(fields, "negative_zeros_dropped"),
    nnz: integer(fields, "nnz"),
    rowDims: integer(fields, "row_dims"),
    tileRows: integer(fields, "tile_rows"),
    models: optional(fields, "models", isMap, "map"),
  };
  const { dtype, layout } = kind;
  require(given.dropped !== 0n, "index-not-canonical", "negative_zeros_dropped of 0");
  require(layout === "dense" ? given.nnz === undefined : given.nnz !== undefined, "index-key", `nnz in layout ${layout}`);
  require(dims.length <= MAX_NDIM, "shape-ndim", `${dims.length} dimensions`);
  const shape = dims.map(BigInt);
  const product = (some) => some.reduce((all, dim) => all * dim, 1n);
  const most = product(shape.map((dim) => (dim > 1n ? dim : 1n))) * BigInt(dtype.bits);
  require(most <= MAX_TENSOR_BITS, "shape-size", "a tensor of 2^63 bits or more");
  const elements = product(shape);
  if (layout !== "dense") {
    const can = dtype.sparse && shape.length > 1 && elements > 0n;
    require(can, "layout-invalid", `layout ${layout} for ${dtype.name} of shape [${dims}]`);
  }
  const geometry = readGeometry(given, shape, elements, dtype);
  const { rows, cols, tileRows } = geometry;
  if (layout !== "dense") {
    const fits = cols <= MAX_SPARSE_COLS && tileRows <= MAX_SPARSE_TILE_ROWS;
    require(fits && tileRows * cols <= MAX_SPARSE_TILE_POSITIONS, "tile-size", `tiles of ${tileRows} x ${cols}`);
    require(given.nnz <= elements, "nnz", `${given.nnz} of ${elements} elements`);
  }
  if (given.dropped !== undefined) {
    const can = dtype.negativeZero !== null && given.dropped <= elements;
    require(can, "negative-zeros-dropped", `${given.dropped} of ${elements} elements of ${dtype.name}`);
  }
  return {
    name,
    kind,
    dtype,
    layout,
    codecs: kind.codecs,
    arrays: kind.arrays,
    hasSigns: kind.hasSigns,
    shape: dims,
    elements: Number(elements),
    rows,
    cols,
    rowDims: geometry.rowDims,
    tileRows,
    tiles: elements > 0n ? Math.ceil(rows / tileRows) : 0,
    nnz: given.nnz === undefined ? null : Number(given.nnz),
    negativeZerosDropped: Number(given.dropped ?? 0n),
    models: readModels(given.models, kind),
    givenFirstChunk: given.firstChunk,
    firstChunk: 0,
  };
}

/** The matrix view and its tiles. Numbers as doubles, which later checks compare with what is far below 2^53. */
function readGeometry(given, shape, elements, dtype) {
  const product = (some) => some.reduce((all, dim) => all * dim, 1n);
  let rowDims = 1;
  if (given.rowDims !== undefined) {
    const can = elements > 0n && given.rowDims >= 2n && given.rowDims < BigInt(shape.length);
    require(can, "row-dims", `row_dims ${given.rowDims} of ${shape.length} dimensions`);
    rowDims = Number(given.rowDims);
  }
  const rows = product(shape.slice(0, rowDims));
  const cols = product(shape.slice(rowDims));
  const matrixRows = shape.length > 0 ? shape[rowDims - 1] : 1n;
  if (elements === 0n) {
    const none = given.tileRows === undefined && given.firstChunk === undefined;
    require(none, "tile-rows", "tile_rows or first_chunk without tiles");
    return { rowDims, rows: Number(rows), cols: Number(cols), tileRows: 0 };
  }
  const tileRows = given.tileRows ?? matrixRows;
  if (given.tileRows !== undefined) {
    require(tileRows >= 1n && tileRows < matrixRows, "tile-rows", `tile_rows ${tileRows} of ${matrixRows} rows`);
    require(rowDims === 1 || matrixRows % tileRows === 0n, "tile-rows", `tile_rows ${tileRows} of ${matrixRows} rows`);
  }
  const several = tileRows < rows;
  require(!(several && dtype.packed && tileRows % 8n !== 0n), "tile-rows", `packed tiles of ${tileRows} rows`);
  return { rowDims, rows: Number(rows), cols: Number(cols), tileRows: Number(tileRows) };
}

function readModels(models, { codecs, arrays, layout }) {
  const given = models ?? new Map();
  require(models === undefined || models.size > 0, "index-not-canonical", "models that are empty");
  for (const model of given.values()) require(isBinary(model), "index-type", "a model that is no bin");
  const isDerived = (array) => layout === "bitmask" && array === "slice_offsets";
  const needed = arrays.filter((array) => codecs.get(array) === "rans" && !isDerived(array));
  const same = needed.length === given.size && needed.every((array) => given.has(array));
  require(same, "model-set", `models of ${[...given.keys()].join(", ") || "nothing"}`);
  for (const model of given.values()) {
    require(model.length <= MAX_MODEL_BYTES, "model-size", `a model of ${model.length} bytes`);
  }
  return given;
}

// ------------------------------------------------------------------------------------------------------------- chunks

/** Records, as columns: {count, raw, stored, offsets, checksums}. */
function readChunkTable(table) {
  if (table.length === 0) return { count: 0, raw: [], stored: [], offsets: [], checksums: [] };
  const view = new DataView(table.buffer, table.byteOffset, table.byteLength);
  const w = table[0] % 16;
  const v = table[0] >> 4;
  require([1, 2, 4, 8].includes(w) && [0, 1, 2, 4, 8].includes(v), "index-type", `sizes of ${w} and ${v} bytes`);
  const count = (table.length - 1) / (w + v + 8);
  require(Number.isInteger(count), "index-type", "a part of a record");
  require(count > 0, "index-not-canonical", "a chunk table with bytes and no record");
  const raw = readSizes(view, 1, w, count);
  const stored = v === 0 ? raw : readSizes(view, 1 + count * w, v, count);
  require(w === leastWidth(raw), "index-not-canonical", "raw sizes that are wider than they need to be");
  if (v > 0) {
    require(v === leastWidth(stored), "index-not-canonical", "stored sizes that are wider than they need to be");
    require(stored.some((size, i) => size !== raw[i]), "index-not-canonical", "stored sizes that are the raw ones");
  }
  const checksums = new BigUint64Array(count);
  for (let i = 0; i < count; i++) checksums[i] = view.getBigUint64(1 + count * (w + v) + 8 * i, true);
  return { count, raw, stored, offsets: new Float64Array(count), checksums };
}

function readSizes(view, start, width, count) {
  const sizes = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    const at = start + i * width;
    if (width === 1) sizes[i] = view.getUint8(at);
    else if (width === 2) sizes[i] = view.getUint16(at, true);
    else if (width === 4) sizes[i] = view.getUint32(at, true);
    else sizes[i] = view.getUint32(at, true) + view.getUint32(at + 4, true) * 2 ** 32;
  }
  return sizes;
}

function leastWidth(sizes) {
  const largest = sizes.reduce((most, size) => Math.max(most, size), 0);
  return largest < 2 ** 8 ? 1 : largest < 2 ** 16 ? 2 : largest < 2 ** 32 ? 4 : 8;
}

function placeChunks(chunks, indexStart) {
  const { count, raw, stored, offsets } = chunks;
  let end = PREAMBLE;
  for (let i = 0; i < count; i++) {
    require(raw[i] <= MAX_CHUNK_BYTES && stored[i] <= MAX_CHUNK_BYTES, "chunk-limit", `chunk ${i} is too large`);
    let alignment = 1;
    if (stored[i] === raw[i]) {
      alignment = 8;
      while (raw[i] >= 32768 && alignment < 64 && raw[i] % (2 * alignment) === 0) alignment *= 2;
    }
    offsets[i] = Math.ceil(end / alignment) * alignment;
    end = offsets[i] + stored[i];
    require(end <= indexStart, "chunk-out-of-bounds", `chunk ${i} ends beyond the start of the index`);
  }
  require(end === indexStart, "chunk-gap", "the chunks end before the start of the index");
}

function assignChunks(tensors, chunks) {
  const owners = [];
  let next = 0;
  for (const tensor of tensors.values()) {
    if (tensor.tiles === 0) continue;
    if (tensor.givenFirstChunk === undefined) tensor.firstChunk = next;
    else {
      require(tensor.givenFirstChunk !== BigInt(next), "index-not-canonical", "first_chunk as if it were left out");
      tensor.firstChunk = Number(tensor.givenFirstChunk);
    }
    next = tensor.firstChunk + tensor.tiles * tensor.arrays.length;
    require(next <= chunks.count, "chunk-assignment", `${tensor.name} has chunks that do not exist`);
    owners.push(tensor);
  }
  owners.sort((a, b) => a.firstChunk - b.firstChunk);
  let end = 0;
  for (const tensor of owners) {
    require(tensor.firstChunk === end, "chunk-assignment", `chunk ${end} is not of one tensor`);
    end += tensor.tiles * tensor.arrays.length;
  }
  require(end === chunks.count, "chunk-assignment", `chunk ${end} is of no tensor`);
}

/** Rows of tile t. */
export function heightOf(tensor, t) {
  return Math.min(tensor.tileRows, tensor.rows - t * tensor.tileRows);
}

/** Bytes of an element of an array; 1 for packed ones. */
export function widthOf(tensor, array) {
  if (array === "values") return tensor.dtype.bytes;
  if (array === "row_counts" || array === "slice_offsets") return 4;
  if (array === "row_permutation") return 2;
  if (array === "columns") return tensor.cols > 65536 ? 4 : 2;
  return 1;
}

function checkRecords(tensor, { raw, stored }) {
  const { arrays, codecs, layout, firstChunk } = tensor;
  let chunk = firstChunk;
  for (let t = 0; t < tensor.tiles; t++) {
    const ofValues = raw[chunk + arrays.indexOf("values")];
    const isRight = rawSizes(tensor, heightOf(tensor, t), ofValues);
    for (const array of arrays) {
      const codec = codecs.get(array);
      const what = `${array} of tile ${t} of ${tensor.name}`;
      require(stored[chunk] <= raw[chunk], "chunk-size", `${what} is larger coded`);
      if (codec === "rans" && layout === "bitmask" && array === "slice_offsets") {
        require(stored[chunk] === raw[chunk] || stored[chunk] === 0, "chunk-size", `${what} is derived`);
      } else require(raw[chunk] <= stored[chunk] * RATIOS[codec], "chunk-size", `${what} is coded by more than can be`);
      require(isRight(array, raw[chunk]), "array-size", `${what} has ${raw[chunk]} bytes`);
      chunk += 1;
    }
  }
}

/** Says whether an array of a tile of r rows can have so many raw bytes, `values` having so many. */
function rawSizes({ layout, dtype, cols, hasSigns }, r, ofValues) {
  const positions = r * cols;
  const slices = Math.ceil(r / 16);
  if (layout === "dense") return (_, bytes) => bytes === Math.ceil((positions * dtype.bits) / 8);
  if (layout === "bitmask") {
    const n = ofValues / dtype.bytes;
    return (array, bytes) => {
      if (array === "values") return Number.isInteger(n) && n <= positions;
      if (array === "mask") return bytes === cols * Math.ceil(r / 8);
      if (array === "slice_offsets") return bytes === 4 * (slices + 1);
      return bytes === Math.ceil((positions - n) / 8);
    };
  }
  const slots = ofValues / dtype.bytes / 16;
  return (array, bytes) => {
    if (array === "values") return Number.isInteger(slots) && slots <= slices * cols;
    if (array === "columns") return bytes === 16 * slots * (cols > 65536 ? 4 : 2);
    if (array === "gaps") return bytes === 16 * slots;
    if (array === "row_counts") return bytes === 4 * r;
    if (array === "row_permutation") return bytes === 2 * r;
    if (array === "slice_offsets") return bytes === 4 * (slices + 1);
    return hasSigns && bytes <= Math.ceil(positions / 8);
  };
}
