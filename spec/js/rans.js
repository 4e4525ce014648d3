// Section 5.3 of SPEC.md: codec rans.

import { Fault, require } from "./faults.js";

const MODEL = "rans-model";
const STREAM = "rans-stream";
const START = 65536;

const bitLength = (a) => 32 - Math.clz32(a);

/** A bit string (5.3.1). Fields beyond its end are a fault of that code. */
class Bits {
  constructor(bytes, code) {
    this.bytes = bytes;
    this.code = code;
    this.at = 0;
    this.size = 8 * bytes.length;
  }

  /** A field of up to 53 bits. */
  field(n) {
    require(n <= this.size - this.at, this.code, "a field beyond the end of the bits");
    let value = 0;
    let scale = 1;
    while (n > 0) {
      const within = this.at % 8;
      const taken = Math.min(8 - within, n);
      value += ((this.bytes[(this.at - within) / 8] >> within) & ((1 << taken) - 1)) * scale;
      scale *= 2 ** taken;
      this.at += taken;
      n -= taken;
    }
    return value;
  }

  number(order) {
    let zeros = 0;
    while (this.field(1) === 0) require(++zeros <= 32, this.code, "a number of more than 32 zero bits");
    const high = 2 ** zeros + this.field(zeros) - 1;
    return high * 2 ** order + this.field(order);
  }

  /** What is behind the zero bits up to a whole byte. */
  rest() {
    require(this.field((8 - (this.at % 8)) % 8) === 0, this.code, "bits that are not zero before a whole byte");
    return this.bytes.subarray(this.at / 8);
  }
}

/** Tables of one precision and one alphabet, one after the other. */
class Tables {
  constructor(precision, symbols, frequencies) {
    this.precision = precision;
    this.symbols = symbols;
    this.frequencies = new Uint16Array(symbols * frequencies.length);
    this.starts = new Uint16Array(symbols * frequencies.length);
    this.ofSlots = new Uint16Array(frequencies.length << precision);
    frequencies.forEach((list, table) => {
      let start = 0;
      list.forEach((frequency, symbol) => {
        this.frequencies[table * symbols + symbol] = frequency;
        this.starts[table * symbols + symbol] = start;
        const slot = (table << precision) + start;
        this.ofSlots.fill(symbol, slot, slot + frequency);
        start += frequency;
      });
    });
  }
}

/**
 * The symbols of a stream (5.3.2), as Uint16Array.
 *
 * tableAt: number of the table of each symbol; null if there is one table.
 */
function readStream(bytes, count, tables, tableAt, code) {
  const n = count < 1024 ? 1 : count < 65536 ? 8 : 32;
  require(bytes.length >= 4 * n && bytes.length % 2 === 0, code, "a stream that ends within its states or a word");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const states = new Uint32Array(n);
  for (let i = 0; i < n; i++) {
    states[i] = view.getUint32(4 * i, true);
    require(states[i] >= START, code, "a state below 2^16");
  }
  const { precision, symbols, frequencies, starts, ofSlots } = tables;
  const below = (1 << precision) - 1;
  const out = new Uint16Array(count);
  const end = bytes.length;
  let at = 4 * n;
  for (let i = 0; i < count; i++) {
    const table = tableAt === null ? 0 : tableAt[i];
    const x = states[i & (n - 1)];
    const slot = x & below;
    const symbol = ofSlots[(table << precision) + slot];
    const known = table * symbols + symbol;
    let next = (Math.imul(frequencies[known], x >>> precision) + slot - starts[known]) >>> 0;
    if (next < START) {
      if (at === end) throw new Fault(code, "a stream that ends early");
      next = ((next << 16) | view.getUint16(at, true)) >>> 0;
      at += 2;
    }
    states[i & (n - 1)] = next;
    out[i] = symbol;
  }
  require(at === end, code, "words behind a stream");
  require(states.every((state) => state === START), code, "a state that is not 2^16 in the end");
  return out;
}

/** Frequencies of bins of those widths (5.3.3). */
function readFrequencies(bits, widths, precision) {
  const all = 2 ** precision;
  const frequencies = [];
  let rest = all;
  for (let i = 0; i + 1 < widths.length; i++) {
    let expected;
    if (i === 0) expected = Math.floor(all / widths.length);
    else expected = Math.floor(frequencies[i - 1] * 2 ** Math.min(Math.max(widths[i] - widths[i - 1], -16), 16));
    expected = Math.min(Math.max(expected, 1), all - 1);
    const v = bits.number(Math.max(0, bitLength(expected) - 2));
    const frequency = v % 2 ? expected - (v + 1) / 2 : expected + v / 2;
    rest -= frequency;
    require(frequency >= 1 && rest >= 1, MODEL, "frequencies that do not add up");
    frequencies.push(frequency);
  }
  return [...frequencies, rest];
}

/** Frequencies of the symbols, or bins of those widths, whose bit is 1; 0 for the others. */
function readSome(bits, widths, precision) {
  const used = widths.map(() => bits.field(1));
  const some = widths.filter((_, i) => used[i]);
  require(some.length > 0, MODEL, "no symbol has a frequency");
  const frequencies = readFrequencies(bits, some, precision);
  let next = 0;
  return used.map((bit) => (bit ? frequencies[next++] : 0));
}

const symbolsOf = (count) => Array(count).fill(0);
const BINOMIALS = [1, 8, 28, 56, 70, 56, 28, 8, 1];
const POPCOUNTS = Array.from({ length: 256 }, (_, byte) => byte.toString(2).replaceAll("0", "").length);

function readOfBytes(bits, precision) {
  if (bits.field(1) === 0) return readSome(bits, symbolsOf(256), precision);
  const frequencies = Array(10).fill(0);
  let rest = 2 ** precision;
  for (let k = 8; k > 0; k--) {
    frequencies[k] = bits.number(bitLength(frequencies[k + 1]));
    rest -= BINOMIALS[k] * frequencies[k];
    require(rest >= 0, MODEL, "frequencies of popcounts that do not add up");
  }
  frequencies[0] = rest;
  return POPCOUNTS.map((k) => frequencies[k]);
}

/** table(0), table(1), … of R classes of rows and C classes of columns. */
function readSteps(bits, rowClasses, columnClasses) {
  const numbers = [0];
  for (let z = 1; z <= rowClasses + columnClasses - 2; z++) numbers.push(numbers[z - 1] + bits.field(1));
  return Uint8Array.from(numbers);
}

/** The end of both models: frequencies of rows and columns, and the classes of columns. */
function readEnd(bits, rowSymbols, columnClasses, cols) {
  const table = (count) => new Tables(12, count, [readSome(bits, symbolsOf(count), 12)]);
  const rowTable = rowSymbols > 1 ? table(rowSymbols) : null;
  const columnTable = columnClasses > 1 ? table(columnClasses) : null;
  const rest = bits.rest();
  if (columnTable === null) {
    require(rest.length === 0, MODEL, "bytes behind a model");
    return { rowTable, columns: null };
  }
  require(cols <= 1048576, MODEL, "classes of more than 2^20 columns");
  return { rowTable, columns: readStream(rest, cols, columnTable, null, MODEL) };
}

/** The symbol of each row, and the rest of the chunk. */
function readRows(chunk, rows, rowTable) {
  if (rowTable === null) return { symbols: new Uint16Array(rows), rest: chunk };
  require(chunk.length >= 4, STREAM, "a chunk that ends early");
  const size = new DataView(chunk.buffer, chunk.byteOffset).getUint32(0, true);
  require(size <= chunk.length - 4, STREAM, "symbols of rows beyond the chunk");
  const symbols = readStream(chunk.subarray(4, 4 + size), rows, rowTable, null, STREAM);
  return { symbols, rest: chunk.subarray(4 + size) };
}

/**
 * A model of elements (5.3.4) of `width` bytes.
 *
 * canHaveClasses: whether they are the values of positions of the matrix view, which has `cols` columns.
 */
export function readElementModel(bytes, width, canHaveClasses, cols) {
  const bits = new Bits(bytes, MODEL);
  const [lag, folded, shift] = [bits.field(2), bits.field(1) === 1, bits.field(6)];
  const precision = 8 + bits.field(3);
  const [rowClasses, columnClasses] = [1 + bits.field(5), 1 + bits.field(5)];
  require(lag < 3, MODEL, "lag 3");
  require(shift < 8 * width, MODEL, "a shift by all bits");
  require(canHaveClasses || rowClasses + columnClasses === 2, MODEL, "classes of what has no positions");
  const numbers = readSteps(bits, rowClasses, columnClasses);
  const bins = readBins(bits, 8 * width - shift);
  const widths = bins.map((bin) => bin.width);
  const frequencies = [];
  const count = 1 + numbers.at(-1);
  if (count === 1) frequencies.push(readFrequencies(bits, widths, precision));
  else for (let i = 0; i < count; i++) frequencies.push(readSome(bits, widths, precision));
  const end = readEnd(bits, rowClasses, columnClasses, cols);
  const tables = new Tables(precision, bins.length, frequencies);
  return { lag, folded, shift, rowClasses, columnClasses, numbers, bins, tables, ...end };
}

/** Bins in ascending order: {low (a BigInt), width}. */
function readBins(bits, keyBits) {
  const bins = [];
  const nodes = [{ low: 0n, width: keyBits }];
  while (nodes.length > 0) {
    const { low, width } = nodes.pop();
    if (width > 0 && bits.field(1) === 1) {
      nodes.push({ low: low + (1n << BigInt(width - 1)), width: width - 1 }, { low, width: width - 1 });
    } else if (bits.field(1) === 1) {
      require(width <= 63, MODEL, "a bin of 64 bits");
      bins.push({ low, width });
      require(bins.length <= 4096, MODEL, "over 4096 bins");
    }
  }
  require(bins.length > 0, MODEL, "no bins");
  return bins;
}

/**
 * A chunk of m elements of `width` bytes (5.3.5), decoded to their bytes.
 *
 * eachPosition: calls its argument with row and column of each element, in their order. Only models with classes need it.
 */
export function decodeElements(chunk, m, width, rows, model, eachPosition) {
  require(chunk.length >= 8, STREAM, "a chunk that ends early");
  const view = new DataView(chunk.buffer, chunk.byteOffset, chunk.byteLength);
  const offsetBits = view.getUint32(0, true) + view.getUint32(4, true) * 2 ** 32;
  const offsetBytes = 8 * Math.ceil(offsetBits / 64);
  require(offsetBytes <= chunk.length - 8, STREAM, "offset bits beyond the chunk");
  const offsets = chunk.subarray(8, 8 + offsetBytes);
  const { symbols: ofRows, rest } = readRows(chunk.subarray(8 + offsetBytes), rows, model.rowTable);
  let tableAt = null;
  if (model.rowClasses + model.columnClasses > 2) {
    const { numbers, columns } = model;
    tableAt = new Uint8Array(m);
    let k = 0;
    eachPosition((row, column) => {
      tableAt[k++] = numbers[ofRows[row] + (columns === null ? 0 : columns[column])];
    });
  }
  const symbols = readStream(rest, m, model.tables, tableAt, STREAM);
  const widths = Uint8Array.from(model.bins, (bin) => bin.width);
  let total = 0;
  for (let i = 0; i < m; i++) total += widths[symbols[i]];
  require(total === offsetBits, STREAM, "offset bits that are not what the bins take");
  const tail = offsetBits % 64;
  if (tail > 0) {
    const last = view.getBigUint64(8 + offsetBytes - 8, true);
    require(last >> BigInt(tail) === 0n, STREAM, "bits behind the offset bits");
  }
  return width === 8 ? elementsOf64(offsets, symbols, model) : elementsOf32(offsets, symbols, width, model);
}

function elementsOf32(offsets, symbols, width, { bins, folded, shift, lag }) {
  const size = 8 * width;
  // integers of 32 bits with a sign, which engines compute fastest; only bits count
  const lows = Int32Array.from(bins, (bin) => Number(BigInt.asIntN(32, bin.low)));
  const widths = Uint8Array.from(bins, (bin) => bin.width);
  const masks = Int32Array.from(bins, (bin) => 2 ** bin.width - 1);
  // two words behind, since a field may be looked for beyond the end if it has no bits
  const words = new Int32Array(offsets.length / 4 + 2);
  new Uint8Array(words.buffer).set(offsets);
  const Bits = { 1: Uint8Array, 2: Uint16Array, 4: Int32Array }[width];
  const out = new Bits(symbols.length);
  const distance = lag === 1 ? 1 : 16;
  let word = 0;
  let bit = 0;
  for (let i = 0; i < symbols.length; i++) {
    const symbol = symbols[i];
    const n = widths[symbol];
    let field = words[word] >>> bit;
    if (bit + n > 32) field |= words[word + 1] << (32 - bit);
    const key = (lows[symbol] + (field & masks[symbol])) | 0;
    bit += n;
    if (bit >= 32) {
      bit -= 32;
      word += 1;
    }
    const element = folded ? ((key & 1) << (size - 1)) | ((key >>> 1) << shift) : key << shift;
    out[i] = lag > 0 && i >= distance ? element + out[i - distance] : element;
  }
  return new Uint8Array(out.buffer);
}

function elementsOf64(offsets, symbols, { bins, folded, shift, lag }) {
  const words = new BigUint64Array(offsets.length / 8 + 1);
  new Uint8Array(words.buffer).set(offsets);
  const out = new BigUint64Array(symbols.length);
  const by = BigInt(shift);
  let at = 0;
  for (let i = 0; i < symbols.length; i++) {
    const { low, width } = bins[symbols[i]];
    const word = Math.floor(at / 64);
    const both = width > 0 ? words[word] | (words[word + 1] << 64n) : 0n;
    const key = low + BigInt.asUintN(width, both >> BigInt(at % 64));
    at += width;
    const element = folded ? ((key & 1n) << 63n) | ((key >> 1n) << by) : key << by;
    const before = i - (lag === 1 ? 1 : 16);
    out[i] = lag > 0 && before >= 0 ? element + out[before] : element;
  }
  return new Uint8Array(out.buffer);
}

/** A model of positions (5.3.6) of a tensor of `cols` columns. */
export function readPositionModel(bytes, cols) {
  const bits = new Bits(bytes, MODEL);
  const precision = 8 + bits.field(3);
  const rowClasses = 1 + bits.field(5);
  const copies = bits.field(1);
  const columnClasses = 1 + bits.field(5);
  const numbers = readSteps(bits, rowClasses, columnClasses);
  const frequencies = [];
  for (let i = 0; i < 1 + numbers.at(-1) + copies; i++) frequencies.push(readOfBytes(bits, precision));
  const { rowTable, columns } = readEnd(bits, rowClasses + copies, columnClasses, cols);
  const tables = new Tables(precision, 256, frequencies);
  return { rowClasses, numbers, tables, rowTable, copyTable: frequencies.length - 1, ...groupsOf(columns, cols) };
}

/** The order of the columns, and the class of each group of eight. */
function groupsOf(columns, cols) {
  const groups = Math.ceil(cols / 8);
  if (columns === null) return { order: null, classes: new Uint8Array(groups) };
  const order = new Uint32Array(cols);
  for (let first = 0; first < cols; first += 64) {
    const run = Array.from({ length: Math.min(64, cols - first) }, (_, i) => first + i);
    // sorting is stable
    order.set(run.sort((a, b) => columns[b] - columns[a]), first);
  }
  const classes = Uint8Array.from({ length: groups }, (_, group) => {
    const those = order.subarray(8 * group, 8 * group + 8);
    const sum = those.reduce((total, column) => total + columns[column], 0);
    return Math.floor((2 * sum + those.length) / (2 * those.length));
  });
  return { order, classes };
}

/** A chunk of positions (5.3.6) of a tile, decoded to the bytes of array `mask`. */
export function decodePositions(chunk, rows, cols, model) {
  const { rowClasses, numbers, tables, rowTable, copyTable, order, classes } = model;
  const { symbols: ofRows, rest } = readRows(chunk, rows, rowTable);
  require(ofRows[0] < rowClasses, STREAM, "the first row is a copy");
  const groups = classes.length;
  const tableAt = new Uint8Array(rows * groups);
  let k = 0;
  for (let first = 0; first < rows; first += 16) {
    const end = Math.min(first + 16, rows);
    for (let group = 0; group < groups; group++) {
      for (let row = first; row < end; row++) {
        tableAt[k++] = ofRows[row] < rowClasses ? numbers[ofRows[row] + classes[group]] : copyTable;
      }
    }
  }
  const coded = readStream(rest, rows * groups, tables, tableAt, STREAM);
  const mask = new Uint8Array(cols * Math.ceil(rows / 8));
  // of the row above, byte by byte
  const above = new Uint8Array(groups);
  const spare = 8 * groups - cols;
  k = 0;
  for (let first = 0; first < rows; first += 16) {
    const height = Math.min(16, rows - first);
    const integers = sliceOf(mask, first / 16, height, cols);
    for (let group = 0; group < groups; group++) {
      const limit = group + 1 < groups ? 256 : 256 >> spare;
      for (let row = 0; row < height; row++) {
        let byte = coded[k++];
        if (byte >= limit) throw new Fault(STREAM, "a bit of a column that does not exist");
        if (ofRows[first + row] === rowClasses) byte ^= above[group];
        above[group] = byte;
        for (let bits = byte; bits !== 0; bits &= bits - 1) {
          const place = 8 * group + 31 - Math.clz32(bits & -bits);
          integers[order === null ? place : order[place]] |= 1 << row;
        }
      }
    }
  }
  return mask;
}

/** The integers of slice i of array `mask` (4.2), one for each column: not copied. */
export function sliceOf(mask, i, height, cols) {
  const Integers = height > 8 ? Uint16Array : Uint8Array;
  return new Integers(mask.buffer, mask.byteOffset + 2 * cols * i, cols);
}
