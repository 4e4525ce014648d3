// Section 2.4 of SPEC.md: the index as one value of msgpack in canonical form.

import { Fault, MAX_INDEX_ARRAY, MAX_INDEX_DEPTH, require } from "./faults.js";

const MALFORMED = "index-malformed";
const NOT_CANONICAL = "index-not-canonical";

// U+FEFF at the start of a name is part of it
const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/**
 * The value of all bytes: Map, Array, string, Uint8Array, or number; a BigInt for integers from 2^53 on.
 *
 * Throws a Fault for any encoding but the canonical one.
 */
export function decode(bytes) {
  const decoder = new Decoder(bytes);
  const value = decoder.value(1);
  require(decoder.at === bytes.length, MALFORMED, `${bytes.length - decoder.at} bytes behind the index`);
  return value;
}

class Decoder {
  constructor(bytes) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.at = 0;
  }

  /** Where the next n bytes begin, which are taken. */
  take(n) {
    require(n <= this.bytes.length - this.at, MALFORMED, "the index ends early");
    this.at += n;
    return this.at - n;
  }

  /** An integer of n bytes, which is to be at least `least`, since a shorter encoding is there for what is less. */
  number(n, least) {
    const at = this.take(n);
    let value;
    if (n === 1) value = this.view.getUint8(at);
    else if (n === 2) value = this.view.getUint16(at);
    else if (n === 4) value = this.view.getUint32(at);
    else {
      value = this.view.getBigUint64(at);
      if (value <= Number.MAX_SAFE_INTEGER) value = Number(value);
    }
    require(value >= least, NOT_CANONICAL, `${value} in ${n} bytes`);
    return value;
  }

  value(depth) {
    const first = this.bytes[this.take(1)];
    if (first < 0x80) return first;
    if (first < 0x90) return this.map(first & 15, depth);
    if (first < 0xa0) return this.array(first & 15, depth);
    if (first < 0xc0) return this.text(first & 31);
    if (first >= 0xe0) throw new Fault("index-type", "a negative integer");
    switch (first) {
      case 0xc0:
        throw new Fault("index-type", "nil");
      case 0xc2:
      case 0xc3:
        throw new Fault("index-type", "a boolean");
      case 0xc4:
        return this.binary(this.number(1, 0));
      case 0xc5:
        return this.binary(this.number(2, 256));
      case 0xc6:
        return this.binary(this.number(4, 65536));
      case 0xca:
      case 0xcb:
        throw new Fault("index-type", "a float");
      case 0xcc:
        return this.number(1, 128);
      case 0xcd:
        return this.number(2, 256);
      case 0xce:
        return this.number(4, 65536);
      case 0xcf:
        return this.number(8, 4294967296);
      case 0xd0:
      case 0xd1:
      case 0xd2:
      case 0xd3:
        throw this.signed(1 << (first - 0xd0));
      case 0xd9:
        return this.text(this.number(1, 32));
      case 0xda:
        return this.text(this.number(2, 256));
      case 0xdb:
        return this.text(this.number(4, 65536));
      case 0xdc:
        return this.array(this.number(2, 16), depth);
      case 0xdd:
        return this.array(this.number(4, 65536), depth);
      case 0xde:
        return this.map(this.number(2, 16), depth);
      case 0xdf:
        return this.map(this.number(4, 65536), depth);
      default:
        throw new Fault(MALFORMED, `no value begins with ${first}`);
    }
  }

  /** What is wrong with a signed integer. */
  signed(n) {
    const negative = this.bytes[this.take(n)] >= 0x80;
    return negative ? new Fault("index-type", "a negative integer") : new Fault(NOT_CANONICAL, "a signed encoding");
  }

  text(n) {
    const at = this.take(n);
    try {
      return utf8.decode(this.bytes.subarray(at, at + n));
    } catch {
      throw new Fault(MALFORMED, "a str that is no UTF-8");
    }
  }

  binary(n) {
    const at = this.take(n);
    return this.bytes.subarray(at, at + n);
  }

  array(n, depth) {
    require(depth <= MAX_INDEX_DEPTH, MALFORMED, "nested too deeply");
    require(n <= MAX_INDEX_ARRAY, MALFORMED, `an array of ${n} elements`);
    const values = [];
    for (let i = 0; i < n; i++) values.push(this.value(depth + 1));
    return values;
  }

  map(n, depth) {
    require(depth <= MAX_INDEX_DEPTH, MALFORMED, "nested too deeply");
    const map = new Map();
    let before = null;
    for (let i = 0; i < n; i++) {
      const start = this.at;
      const first = this.bytes[this.at];
      require((first >= 0xa0 && first < 0xc0) || (first >= 0xd9 && first <= 0xdb), MALFORMED, "a key that is no str");
      const key = this.value(depth + 1);
      const header = first < 0xc0 ? 1 : 1 + (1 << (first - 0xd9));
      const bytes = this.bytes.subarray(start + header, this.at);
      require(before === null || isLess(before, bytes), NOT_CANONICAL, "keys that are not sorted, or twice");
      before = bytes;
      map.set(key, this.value(depth + 1));
    }
    return map;
  }
}

function isLess(a, b) {
  const n = Math.min(a.length, b.length);
  for (let i = 0; i < n; i++) if (a[i] !== b[i]) return a[i] < b[i];
  return a.length < b.length;
}
