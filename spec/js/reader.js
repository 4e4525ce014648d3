// A strict reader of .sparsefmt files, written from spec/SPEC.md alone. It runs in browsers and in Node, and needs nothing else.
//
//   import { open } from "./reader.js";
//   const file = await open(new BlobSource(blob));
//   const dense = await file.readDense("layers.0.weight");     // Uint8Array: all elements in row-major order
//
// Machines whose integers lie the other way round (big-endian) are not supported.

import { heightOf, openContainer, widthOf } from "./container.js";
import { asBits } from "./dtypes.js";
import { Fault, require } from "./faults.js";
import { readContent, readHeader } from "./frames.js";
import { checkOffsets, eachOfMask, offsetsOfMask, readTile } from "./layouts.js";
import { decodeElements, decodePositions, readElementModel, readPositionModel, sliceOf } from "./rans.js";
import { xxh64 } from "./xxh64.js";

export { Fault, heightOf };

if (new Uint8Array(Uint16Array.of(1).buffer)[0] !== 1) throw new Error("this reader needs a little-endian machine");

/** Bytes in memory, as a source of a file. */
export class BytesSource {
  constructor(bytes) {
    this.bytes = bytes;
    this.size = bytes.length;
  }

  async read(start, end) {
    return this.bytes.subarray(start, end);
  }
}

/** A Blob or a File, of which only what is asked for is read. */
export class BlobSource {
  constructor(blob) {
    this.blob = blob;
    this.size = blob.size;
  }

  async read(start, end) {
    return new Uint8Array(await this.blob.slice(start, end).arrayBuffer());
  }
}

/** Reads preamble, trailer and index of a source, and verifies them. Resolves to a SparseFile; rejects with a Fault. */
export async function open(source) {
  return new SparseFile(await openContainer(source));
}

export class SparseFile {
  constructor(container) {
    Object.assign(this, container);
    // models by tensor and array, once they were needed
    this.models = new Map();
  }

  /** The entry of a name, or of the tensor that it stands for. */
  tensor(name) {
    let alias = this.aliases.get(name);
    while (alias !== undefined) {
      name = alias.of;
      alias = this.aliases.get(name);
    }
    const tensor = this.tensors.get(name);
    if (tensor === undefined) throw new RangeError(`no tensor ${name}`);
    return tensor;
  }

  /** Bytes that the chunks of an entry take in the file. */
  storedBytes({ firstChunk, tiles, arrays }) {
    let bytes = 0;
    for (let i = firstChunk; i < firstChunk + tiles * arrays.length; i++) bytes += this.chunks.stored[i];
    return bytes;
  }

  /** All dense bytes of a tensor. Rejects with a Fault. */
  async readDense(name) {
    const tensor = this.tensor(name);
    const dense = new Uint8Array(Math.ceil((tensor.elements * tensor.dtype.bits) / 8));
    let at = 0;
    let stored = 0;
    let someSigns = false;
    for (let t = 0; t < tensor.tiles; t++) {
      const tile = await this.readTile(tensor, t);
      const { elements } = tile;
      dense.set(new Uint8Array(elements.buffer, elements.byteOffset, elements.byteLength), at);
      at += elements.byteLength;
      stored += tile.stored ?? 0;
      someSigns ||= tile.someSigns;
    }
    this.checkWhole(tensor, stored, someSigns);
    return dense;
  }

  /** What only all tiles of a tensor together can say: how many of their positions are stored, and whether one is -0. */
  checkWhole(tensor, stored, someSigns) {
    require(tensor.nnz === null || tensor.nnz === stored, "nnz", `${stored} stored positions, not ${tensor.nnz}`);
    require(someSigns || !tensor.hasSigns, "negative-zeros-empty", "negative_zeros without a bit");
  }

  /** A tile of an entry, verified: {elements, stored, someSigns}, as layouts.js says. Rejects with a Fault. */
  async readTile(tensor, t) {
    const rows = heightOf(tensor, t);
    return readTile(tensor, rows, await this.readArrays(tensor, t, rows));
  }

  async readArrays(tensor, t, rows) {
    const { offsets, stored, raw, checksums, count } = this.chunks;
    const first = tensor.firstChunk + t * tensor.arrays.length;
    const last = first + tensor.arrays.length - 1;
    const start = offsets[first];
    // with the padding behind the last; behind the last of the file is none
    const end = last + 1 < count ? offsets[last + 1] : offsets[last] + stored[last];
    const bytes = await this.source.read(start, end);
    if (bytes.length !== end - start) throw new Error("the file has changed while it was read");
    const arrays = new Map();
    tensor.arrays.forEach((array, j) => {
      const i = first + j;
      const from = offsets[i] - start;
      const to = from + stored[i];
      // a copy, so that its elements are aligned
      const chunk = bytes.slice(from, to);
      require(xxh64(chunk) === checksums[i], "chunk-checksum", `${array} of tile ${t} was changed`);
      const behind = bytes.subarray(to, i < last ? offsets[i + 1] - start : bytes.length);
      require(behind.every((byte) => byte === 0), "padding-not-zero", `behind ${array} of tile ${t}`);
      const decoded = stored[i] === raw[i] ? chunk : this.decode(tensor, array, chunk, raw[i], rows, arrays);
      arrays.set(array, decoded);
    });
    return arrays;
  }

  /** A coded chunk as the bytes of its array, of which there are `raw`; arrays: those before it. */
  decode(tensor, array, chunk, raw, rows, arrays) {
    const { cols, layout } = tensor;
    const width = widthOf(tensor, array);
    if (tensor.codecs.get(array) === "zstd") {
      if (array === "mask") return fromRows(readFrame(chunk, rows * Math.ceil(cols / 8)), rows, cols);
      return fromPlanes(readFrame(chunk, raw), width);
    }
    if (array === "slice_offsets" && layout === "bitmask") {
      return new Uint8Array(offsetsOfMask(arrays.get("mask"), rows, cols).buffer);
    }
    const model = this.model(tensor, array, width);
    if (array === "mask") return decodePositions(chunk, rows, cols, model);
    const m = raw / width;
    let eachPosition = null;
    if (model.rowClasses + model.columnClasses > 2) {
      eachPosition = layout === "dense" ? eachOf(rows, cols) : eachStored(arrays, rows, cols, m);
    }
    return decodeElements(chunk, m, width, rows, model, eachPosition);
  }

  model(tensor, array, width) {
    const key = `${array} ${tensor.name}`;
    if (!this.models.has(key)) {
      const bytes = tensor.models.get(array);
      const ofPositions = tensor.layout === "bitmask" || (tensor.layout === "dense" && !tensor.dtype.packed);
      const model =
        array === "mask"
          ? readPositionModel(bytes, tensor.cols)
          : readElementModel(bytes, width, array === "values" && ofPositions, tensor.cols);
      // tables are large, and a tensor is read as a whole, mostly
      if (this.models.size > 8) this.models.clear();
      this.models.set(key, model);
    }
    return this.models.get(key);
  }
}

function readFrame(chunk, size) {
  const header = readHeader(chunk, "zstd-corrupt", "zstd-size");
  require(header.contentSize === size, "zstd-size", `a frame of ${header.contentSize} bytes in place of ${size}`);
  return readContent(chunk, header, "zstd-corrupt");
}

/** Byte 0 of every element, then byte 1 of every element, …: as elements of `width` bytes. */
function fromPlanes(planes, width) {
  if (width === 1) return planes;
  const m = planes.length / width;
  const bytes = new Uint8Array(planes.length);
  for (let k = 0; k < width; k++) for (let i = 0; i < m; i++) bytes[i * width + k] = planes[k * m + i];
  return bytes;
}

/** A mask row by row, as array `mask`. */
function fromRows(byRows, rows, cols) {
  const mask = new Uint8Array(cols * Math.ceil(rows / 8));
  const rowBytes = Math.ceil(cols / 8);
  const used = cols % 8;
  for (let row = 0; row < rows; row++) {
    const integers = sliceOf(mask, Math.floor(row / 16), Math.min(16, rows - (row - (row % 16))), cols);
    const line = byRows.subarray(row * rowBytes, (row + 1) * rowBytes);
    require(used === 0 || line[rowBytes - 1] >> used === 0, "zstd-corrupt", "a bit of a column that does not exist");
    const bit = 1 << (row % 16);
    for (let k = 0; k < rowBytes; k++) {
      for (let bits = line[k]; bits !== 0; bits &= bits - 1) integers[8 * k + 31 - Math.clz32(bits & -bits)] |= bit;
    }
  }
  return mask;
}

const eachOf = (rows, cols) => (visit) => {
  for (let row = 0; row < rows; row++) for (let column = 0; column < cols; column++) visit(row, column);
};

/** Positions of `values`, once the mask is verified. */
function eachStored(arrays, rows, cols, m) {
  const mask = arrays.get("mask");
  checkOffsets(offsetsOfMask(mask, rows, cols), asBits(arrays.get("slice_offsets"), 4), m);
  return (visit) => eachOfMask(mask, rows, cols, visit);
}
