// One frame of zstd (RFC 8878): all that codec zstd and a coded index need. It is stricter than section 5.2 of SPEC.md
// asks for: whatever the RFC calls corrupted is refused.

import { xxh64 } from "./xxh64.js";

export const MAGIC = [0x28, 0xb5, 0x2f, 0xfd];
const MAX_BLOCK = 131072;

/** What is wrong with a frame. Callers turn it into a Fault. */
export class ZstdError extends Error {}

function require(condition, message) {
  if (!condition) throw new ZstdError(message);
}

/** Header of a frame: {headerBytes, contentSize (null if it is not stated), windowSize, checksum, dictionary}. */
export function frameHeader(bytes) {
  require(bytes.length >= 6 && MAGIC.every((byte, i) => bytes[i] === byte), "no frame of zstd");
  const descriptor = bytes[4];
  const single = (descriptor >> 5) & 1;
  require((descriptor & 8) === 0, "the reserved bit is set");
  let at = 5;
  const field = (n) => {
    require(at + n <= bytes.length, "the frame ends early");
    let value = 0;
    for (let i = 0; i < n; i++) value += bytes[at + i] * 2 ** (8 * i);
    at += n;
    return value;
  };
  let windowSize = null;
  if (!single) {
    const window = field(1);
    windowSize = 2 ** (10 + (window >> 3)) * (1 + (window & 7) / 8);
  }
  const dictionary = field([0, 1, 2, 4][descriptor & 3]);
  const sizeBytes = [single, 2, 4, 8][descriptor >> 6];
  const contentSize = sizeBytes === 0 ? null : field(sizeBytes) + (sizeBytes === 2 ? 256 : 0);
  if (single) windowSize = contentSize;
  return { headerBytes: at, contentSize, windowSize, checksum: (descriptor & 4) !== 0, dictionary };
}

/** The content of a frame that states its size; header: what frameHeader gives. */
export function decodeFrame(frame, header) {
  // bit readers look at four bytes at once, so there are some behind the frame
  const bytes = new Uint8Array(frame.length + 8);
  bytes.set(frame);
  const out = new Uint8Array(header.contentSize);
  const decoder = new BlockDecoder(bytes, out, Math.min(header.windowSize, MAX_BLOCK));
  let at = header.headerBytes;
  let last = false;
  while (!last) {
    require(at + 3 <= frame.length, "the frame ends early");
    const block = bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16);
    at += 3;
    last = (block & 1) === 1;
    const kind = (block >> 1) & 3;
    const size = block >> 3;
    require(size <= decoder.maxBlock, "a block that is too large");
    const stored = kind === 1 ? 1 : size;
    require(at + stored <= frame.length, "the frame ends early");
    if (kind === 0) decoder.copy(at, size);
    else if (kind === 1) decoder.repeat(bytes[at], size);
    else if (kind === 2) decoder.block(at, at + size);
    else throw new ZstdError("a block of a reserved type");
    at += stored;
  }
  require(decoder.at === out.length, "less content than the frame states");
  if (header.checksum) {
    require(at + 4 <= frame.length, "the frame ends early");
    const checksum = new DataView(bytes.buffer).getUint32(at, true);
    require(checksum === Number(xxh64(out) & 0xffffffffn), "the content was changed");
    at += 4;
  }
  require(at === frame.length, "bytes behind the frame");
  return out;
}

/** Bits of bytes [start, end), from the end to the start: what encoders of zstd wrote last comes first. */
class Backward {
  constructor(bytes, start, end) {
    require(end > start && bytes[end - 1] !== 0, "a bit stream without an end");
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset + start);
    // bits that are left, below the mark of the end
    this.left = 8 * (end - start - 1) + 31 - Math.clz32(bytes[end - 1]);
  }

  /** The next n bits, n at most 24; zeros beyond the start. */
  peek(n) {
    const at = this.left - n;
    if (at >= 0) return (this.view.getUint32(at >>> 3, true) >>> (at & 7)) & ((1 << n) - 1);
    if (this.left <= 0) return 0;
    return (this.view.getUint32(0, true) & ((1 << this.left) - 1)) << -at;
  }

  read(n) {
    const value = this.peek(n);
    this.left -= n;
    return value;
  }
}

/** Counts of symbols, as section 4.1.1 of the RFC codes them: {counts, log, end}. */
function readCounts(bytes, start, end, maxLog, maxSymbol) {
  let at = 8 * start;
  const stop = 8 * end;
  const peek = (n) => {
    const byte = at >>> 3;
    const word = bytes[byte] | (bytes[byte + 1] << 8) | (bytes[byte + 2] << 16) | (bytes[byte + 3] << 24);
    return (word >>> (at & 7)) & ((1 << n) - 1);
  };
  require(start < end, "a table that ends early");
  const log = peek(4) + 5;
  require(log <= maxLog, "a table that is too large");
  at += 4;
  const counts = [];
  let remaining = (1 << log) + 1;
  let threshold = 1 << log;
  let width = log + 1;
  while (remaining > 1) {
    require(counts.length <= maxSymbol && at < stop, "a table that ends early");
    const most = 2 * threshold - 1 - remaining;
    const value = peek(width);
    let count;
    if ((value & (threshold - 1)) < most) {
      count = value & (threshold - 1);
      at += width - 1;
    } else {
      count = value >= threshold ? value - most : value;
      at += width;
    }
    count -= 1;
    remaining -= Math.abs(count);
    counts.push(count);
    if (count === 0) {
      let more = 3;
      while (more === 3) {
        require(at < stop && counts.length <= maxSymbol + 1, "a table that ends early");
        more = peek(2);
        at += 2;
        for (let i = 0; i < more; i++) counts.push(0);
      }
    }
    while (remaining < threshold) {
      width -= 1;
      threshold >>= 1;
    }
  }
  require(remaining === 1 && counts.length <= maxSymbol + 1, "counts that do not add up");
  require(at <= stop, "a table that ends early");
  return { counts, log, end: (at + 7) >>> 3 };
}

/** Table of a finite state decoder: for each state its symbol, the bits to read, and what to add to them. */
function makeTable({ counts, log }) {
  const size = 1 << log;
  const symbols = new Uint8Array(size);
  const next = counts.map((count) => (count === -1 ? 1 : count));
  let high = size;
  counts.forEach((count, symbol) => {
    if (count === -1) symbols[--high] = symbol;
  });
  const step = (size >> 1) + (size >> 3) + 3;
  let place = 0;
  counts.forEach((count, symbol) => {
    for (let i = 0; i < count; i++) {
      symbols[place] = symbol;
      do place = (place + step) & (size - 1);
      while (place >= high);
    }
  });
  const widths = new Uint8Array(size);
  const bases = new Uint16Array(size);
  for (let state = 0; state < size; state++) {
    const number = next[symbols[state]]++;
    widths[state] = log - (31 - Math.clz32(number));
    bases[state] = (number << widths[state]) - size;
  }
  return { log, symbols, widths, bases };
}

const singleSymbol = (symbol) => ({
  log: 0,
  symbols: Uint8Array.of(symbol),
  widths: new Uint8Array(1),
  bases: new Uint16Array(1),
});

const repeated = (...runs) => runs.flatMap(([n, value]) => Array(n).fill(value));

/** Literal lengths, offsets and match lengths: largest table, highest code, the table that frames need not have. */
const CODES = {
  literals: {
    maxLog: 9,
    maxCode: 35,
    counts: [4, 3, ...repeated([11, 2], [3, 1], [9, 2]), 3, 2, ...repeated([5, 1], [4, -1])],
    log: 6,
  },
  offsets: { maxLog: 8, maxCode: 31, counts: repeated([6, 1], [3, 2], [15, 1], [5, -1]), log: 5 },
  matches: { maxLog: 9, maxCode: 52, counts: [1, 4, 3, ...repeated([6, 2], [37, 1], [7, -1])], log: 6 },
};

/** Bits behind each code, and the length that the code begins at. */
function lengths(direct, first, widths) {
  const bases = Array.from({ length: direct }, (_, code) => code + first);
  let base = direct + first;
  for (const width of widths) {
    bases.push(base);
    base += 2 ** width;
  }
  return { bases, widths: [...Array(direct).fill(0), ...widths] };
}
const LITERAL_LENGTHS = lengths(16, 0, [1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
const MATCH_LENGTHS = lengths(32, 3, [1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);

class BlockDecoder {
  constructor(bytes, out, maxBlock) {
    this.bytes = bytes;
    this.out = out;
    this.maxBlock = maxBlock;
    this.at = 0;
    this.huffman = null;
    this.tables = { literals: null, offsets: null, matches: null };
    this.recent = [1, 4, 8];
  }

  room(n) {
    require(n <= this.out.length - this.at, "more content than the frame states");
  }

  copy(start, n) {
    this.room(n);
    this.out.set(this.bytes.subarray(start, start + n), this.at);
    this.at += n;
  }

  repeat(byte, n) {
    this.room(n);
    this.out.fill(byte, this.at, this.at + n);
    this.at += n;
  }

  block(start, end) {
    const before = this.at;
    const { literals, at } = this.literals(start, end);
    this.sequences(at, end, literals);
    require(this.at - before <= this.maxBlock, "a block that is too large");
  }

  literals(start, end) {
    const { bytes } = this;
    require(end - start >= 1, "a block without literals");
    const kind = bytes[start] & 3;
    const format = (bytes[start] >> 2) & 3;
    if (kind < 2) {
      const headerBytes = [1, 2, 1, 3][format];
      require(start + headerBytes <= end, "a block that ends early");
      const word = bytes[start] | (bytes[start + 1] << 8) | (bytes[start + 2] << 16);
      const size = headerBytes === 1 ? (word & 0xff) >> 3 : headerBytes === 2 ? (word & 0xffff) >> 4 : word >> 4;
      const at = start + headerBytes;
      require(size <= MAX_BLOCK && at + (kind ? 1 : size) <= end, "literals that end early");
      if (kind === 0) return { literals: bytes.subarray(at, at + size), at: at + size };
      return { literals: new Uint8Array(size).fill(bytes[at]), at: at + 1 };
    }
    const headerBytes = [3, 3, 4, 5][format];
    const width = [10, 10, 14, 18][format];
    require(start + headerBytes <= end, "a block that ends early");
    let word = 0;
    for (let i = 0; i < headerBytes; i++) word += bytes[start + i] * 2 ** (8 * i);
    word = Math.floor(word / 16);
    const size = word % 2 ** width;
    const coded = Math.floor(word / 2 ** width);
    let at = start + headerBytes;
    const stop = at + coded;
    require(size <= MAX_BLOCK && stop <= end, "literals that end early");
    if (kind === 2) at = this.readHuffman(at, stop);
    require(this.huffman !== null, "literals without a table");
    const literals = new Uint8Array(size);
    if (format === 0) this.huffmanStream(at, stop, literals, 0, size);
    else {
      require(at + 6 <= stop && size >= 6, "literals that end early");
      const part = (size + 3) >> 2;
      let from = at + 6;
      for (let i = 0; i < 4; i++) {
        const to = i < 3 ? from + (bytes[at + 2 * i] | (bytes[at + 2 * i + 1] << 8)) : stop;
        require(to <= stop && i * part <= size, "literals that end early");
        this.huffmanStream(from, to, literals, i * part, i < 3 ? Math.min(size, (i + 1) * part) : size);
        from = to;
      }
    }
    return { literals, at: stop };
  }

  /** Weights of the symbols, and the table that they make. Returns where it ends. */
  readHuffman(start, stop) {
    const { bytes } = this;
    require(start < stop, "a table that ends early");
    const first = bytes[start];
    const weights = [];
    let end;
    if (first >= 128) {
      const n = first - 127;
      end = start + 1 + ((n + 1) >> 1);
      require(end <= stop, "a table that ends early");
      for (let i = 0; i < n; i++) {
        const byte = bytes[start + 1 + (i >> 1)];
        weights.push(i & 1 ? byte & 15 : byte >> 4);
      }
    } else {
      end = start + 1 + first;
      require(end <= stop, "a table that ends early");
      const counts = readCounts(bytes, start + 1, end, 6, 12);
      const table = makeTable(counts);
      const bits = new Backward(bytes, counts.end, end);
      const states = [bits.read(table.log), bits.read(table.log)];
      require(bits.left >= 0, "a table that ends early");
      for (let i = 0; ; i ^= 1) {
        const state = states[i];
        weights.push(table.symbols[state]);
        require(weights.length < 255, "too many symbols");
        if (bits.left < table.widths[state]) {
          weights.push(table.symbols[states[i ^ 1]]);
          break;
        }
        states[i] = table.bases[state] + bits.read(table.widths[state]);
      }
    }
    let sum = 0;
    for (const weight of weights) sum += weight > 0 ? 1 << (weight - 1) : 0;
    require(sum > 0, "a table without symbols");
    const log = 32 - Math.clz32(sum);
    const rest = (1 << log) - sum;
    require(log <= 11 && (rest & (rest - 1)) === 0, "weights that do not add up");
    weights.push(32 - Math.clz32(rest));
    require(weights.length <= 256, "too many symbols");
    // libzstd takes no table whose longest codes are not a pair or more
    const longest = weights.filter((weight) => weight === 1).length;
    require(longest >= 2 && longest % 2 === 0, "weights that do not add up");
    const table = new Uint16Array(1 << log);
    let at = 0;
    for (let weight = 1; weight <= log; weight++) {
      weights.forEach((other, symbol) => {
        if (other !== weight) return;
        table.fill((symbol << 4) | (log + 1 - weight), at, at + (1 << (weight - 1)));
        at += 1 << (weight - 1);
      });
    }
    this.huffman = { table, log };
    return end;
  }

  huffmanStream(start, end, literals, from, to) {
    const bits = new Backward(this.bytes, start, end);
    const { table, log } = this.huffman;
    for (let i = from; i < to; i++) {
      const code = table[bits.peek(log)];
      bits.left -= code & 15;
      literals[i] = code >> 4;
    }
    require(bits.left === 0, "literals that do not fill their stream");
  }

  sequences(start, end, literals) {
    const { bytes } = this;
    require(start < end, "a block without sequences");
    let n = bytes[start];
    let at = start + 1;
    if (n >= 128) {
      const more = n === 255 ? 2 : 1;
      require(at + more <= end, "sequences that end early");
      n = n === 255 ? bytes[at] + (bytes[at + 1] << 8) + 0x7f00 : ((n - 128) << 8) + bytes[at];
      at += more;
    }
    if (n === 0) {
      require(at === end, "bytes behind a block");
      this.literal(literals, 0, literals.length);
      return;
    }
    require(at < end, "sequences that end early");
    const modes = bytes[at++];
    require((modes & 3) === 0, "reserved bits are set");
    for (const [shift, codes] of [
      [6, "literals"],
      [4, "offsets"],
      [2, "matches"],
    ]) {
      at = this.readTable((modes >> shift) & 3, codes, at, end);
    }
    this.execute(n, new Backward(bytes, at, end), literals);
  }

  readTable(mode, codes, at, end) {
    const { maxLog, maxCode, counts, log } = CODES[codes];
    if (mode === 0) this.tables[codes] = makeTable({ counts, log });
    else if (mode === 1) {
      require(at < end && this.bytes[at] <= maxCode, "a code that does not exist");
      this.tables[codes] = singleSymbol(this.bytes[at++]);
    } else if (mode === 2) {
      const read = readCounts(this.bytes, at, end, maxLog, maxCode);
      this.tables[codes] = makeTable(read);
      at = read.end;
    } else require(this.tables[codes] !== null, "a table that was not there before");
    return at;
  }

  execute(n, bits, literals) {
    const { literals: forLiterals, offsets: forOffsets, matches: forMatches } = this.tables;
    const { out, recent } = this;
    let ofLiterals = bits.read(forLiterals.log);
    let ofOffsets = bits.read(forOffsets.log);
    let ofMatches = bits.read(forMatches.log);
    let taken = 0;
    for (let i = 0; i < n; i++) {
      const width = forOffsets.symbols[ofOffsets];
      const high = width > 16 ? bits.read(width - 16) * 65536 : 0;
      const code = 2 ** width + high + bits.read(Math.min(width, 16));
      const matchCode = forMatches.symbols[ofMatches];
      const length = MATCH_LENGTHS.bases[matchCode] + bits.read(MATCH_LENGTHS.widths[matchCode]);
      const literalCode = forLiterals.symbols[ofLiterals];
      const run = LITERAL_LENGTHS.bases[literalCode] + bits.read(LITERAL_LENGTHS.widths[literalCode]);
      let offset;
      if (code > 3) {
        offset = code - 3;
        recent[2] = recent[1];
        recent[1] = recent[0];
        recent[0] = offset;
      } else {
        const number = code - 1 + (run === 0 ? 1 : 0);
        offset = number === 3 ? recent[0] - 1 : recent[number];
        if (number > 1) recent[2] = recent[1];
        if (number > 0) recent[1] = recent[0];
        recent[0] = offset;
      }
      if (i + 1 < n) {
        ofLiterals = forLiterals.bases[ofLiterals] + bits.read(forLiterals.widths[ofLiterals]);
        ofMatches = forMatches.bases[ofMatches] + bits.read(forMatches.widths[ofMatches]);
        ofOffsets = forOffsets.bases[ofOffsets] + bits.read(forOffsets.widths[ofOffsets]);
      }
      require(bits.left >= 0 && taken + run <= literals.length, "sequences that end early");
      this.literal(literals, taken, run);
      taken += run;
      require(offset > 0 && offset <= this.at, "a match before the content");
      this.room(length);
      if (offset >= length) out.copyWithin(this.at, this.at - offset, this.at - offset + length);
      else for (let k = this.at; k < this.at + length; k++) out[k] = out[k - offset];
      this.at += length;
    }
    require(bits.left === 0, "sequences that do not fill their stream");
    this.literal(literals, taken, literals.length - taken);
  }

  literal(literals, from, n) {
    this.room(n);
    this.out.set(literals.subarray(from, from + n), this.at);
    this.at += n;
  }
}
