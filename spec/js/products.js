// Section 6 of SPEC.md: y = W x to the bit.

import { asBits, unpack, valueOf } from "./dtypes.js";
import { require } from "./faults.js";

const doubles = new Float64Array(1);
const words = new BigInt64Array(doubles.buffer);

/** a * b + c for binary32, rounded once. */
export function fma32(a, b, c) {
  const p = a * b;
  const s = p + c;
  const t = s - p;
  const e = p - (s - t) + (c - t);
  if (e === 0 || Number.isNaN(e)) return Math.fround(s);
  doubles[0] = s;
  if ((words[0] & 1n) === 0n) words[0] += e > 0 === s > 0 ? 1n : -1n;
  return Math.fround(doubles[0]);
}

/** a * b + c for binary64, rounded once. Exact integers make it slow, and plainly right. */
export function fma64(a, b, c) {
  if (a === 0 || b === 0 || !Number.isFinite(a) || !Number.isFinite(b) || !Number.isFinite(c)) return a * b + c;
  if (c === 0) return a * b;
  const [x, y, z] = [a, b, c].map(parts);
  const exponent = Math.min(x.exponent + y.exponent, z.exponent);
  const product = (x.integer * y.integer) << BigInt(x.exponent + y.exponent - exponent);
  return rounded(product + (z.integer << BigInt(z.exponent - exponent)), exponent);
}

/** A finite number as integer * 2^exponent. */
function parts(number) {
  doubles[0] = number;
  const bits = BigInt.asUintN(64, words[0]);
  const exponent = Number((bits >> 52n) & 2047n);
  const mantissa = bits & ((1n << 52n) - 1n);
  const integer = exponent > 0 ? mantissa | (1n << 52n) : mantissa;
  return { integer: number < 0 ? -integer : integer, exponent: Math.max(exponent, 1) - 1075 };
}

/** integer * 2^exponent as a number, to nearest, ties to even. */
function rounded(integer, exponent) {
  if (integer === 0n) return 0;
  const magnitude = integer < 0n ? -integer : integer;
  const wanted = Math.max(exponent + magnitude.toString(2).length - 53, -1074);
  const shift = BigInt(Math.max(wanted - exponent, 0));
  let kept = magnitude >> shift;
  const rest = magnitude - (kept << shift);
  const half = shift > 0n ? 1n << (shift - 1n) : 0n;
  if (shift > 0n && (rest > half || (rest === half && (kept & 1n) === 1n))) kept += 1n;
  const result = Number(kept) * 2 ** (shift > 0n ? wanted : exponent);
  return integer < 0n ? -result : result;
}

/** Whether a dtype has a product. */
export function hasProduct(dtype) {
  return dtype.kind !== "complex";
}

/**
 * y = W x, W being the matrix view of a tensor with these dense bytes.
 *
 * x: a Float64Array with an element for each column; numbers of binary32, unless the dtype adds up in binary64 (dtype.double).
 * Returns Float64Array or Float32Array, as that is.
 */
export function multiply({ dtype, rows, cols }, dense, x) {
  require(hasProduct(dtype), "dtype-unknown", `${dtype.name} has no product`);
  const fma = dtype.double ? fma64 : fma32;
  const y = new (dtype.double ? Float64Array : Float32Array)(rows);
  const elements = dtype.packed ? null : asBits(dense.slice(), dtype.bytes);
  for (let row = 0; row < rows; row++) {
    let sum = 0;
    for (let column = 0; column < cols; column++) {
      const i = row * cols + column;
      const w = Number(valueOf(dtype, elements === null ? unpack(dense, dtype.bits, i) : elements[i]));
      if (w !== 0) sum = fma(w, x[column], sum);
    }
    y[row] = sum + 0;
  }
  return y;
}
