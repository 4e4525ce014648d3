// Sections 6.1 to 6.3 of SPEC.md: products of scaled weights, also with activations in eight bits.

import { asBits, unpack, valueOf } from "./dtypes.js";
import { require } from "./faults.js";
import { fma32, fma64, hasProduct } from "./products.js";

const doubles = new Float64Array(1);
const words = new BigInt64Array(doubles.buffer);

/** The scales of each weight that `sparsefmt.scales` names: a Map of names. */
export function pairsIn(file) {
  const text = file.metadata.get("sparsefmt.scales") ?? "{}";
  const what = "`sparsefmt.scales`";
  let object = null;
  try {
    object = JSON.parse(text);
  } catch {
    // no JSON
  }
  const isObject = typeof object === "object" && object !== null && !Array.isArray(object);
  const texts = isObject && Object.values(object).every((value) => typeof value === "string");
  require(texts, "scales-metadata", `${what} is no JSON object of texts`);
  // JSON.parse keeps the last of equal names: in an object of texts, every other text is a name
  const found = (text.match(/"(?:[^"\\]|\\.)*"/g) ?? []).map((literal) => JSON.parse(literal));
  const pairs = new Map();
  for (let i = 0; i < found.length; i += 2) {
    require(!pairs.has(found[i]), "scales-metadata", `${what} has the name of a weight twice`);
    pairs.set(found[i], found[i + 1]);
  }
  const names = new Set(file.names);
  for (const name of [...pairs.keys(), ...pairs.values()]) {
    require(names.has(name), "scales-missing", `${what} names ${name}, which is not there`);
  }
  return pairs;
}

/** All elements of a tensor as numbers of type A, binary64 if `double`. */
async function numbersOf(file, name, double) {
  const { dtype, elements } = file.tensor(name);
  require(hasProduct(dtype), "dtype-unknown", `${dtype.name} has no product`);
  const dense = await file.readDense(name);
  const bits = dtype.packed ? null : asBits(dense.slice(), dtype.bytes);
  const numbers = new (double ? Float64Array : Float32Array)(elements);
  for (let i = 0; i < elements; i++) {
    const value = valueOf(dtype, bits === null ? unpack(dense, dtype.bits, i) : bits[i]);
    numbers[i] = typeof value === "bigint" ? numberOf(value, double) : value;
  }
  return numbers;
}

/** An integer of 64 bits, rounded once. */
function numberOf(integer, double) {
  const number = Number(integer);
  if (double || BigInt(number) === integer) return number;
  // one that is inexact becomes the neighbour whose last bit is 1, which is rounded as the integer itself is
  doubles[0] = number;
  const magnitude = integer < 0n ? -integer : integer;
  if (BigInt(Math.abs(number)) > magnitude) words[0] -= 1n;
  words[0] |= 1n;
  return doubles[0];
}

/** How many groups the columns of a weight have by its scales, whose dtype and shape are checked. */
function groupsOf(weight, scales) {
  const { shape } = scales;
  require(["F32", "BF16", "F16"].includes(scales.dtype.name), "scales-dtype", `scales of ${scales.dtype.name}`);
  const groups = shape.length === 2 ? shape[1] : 1;
  const one = shape.length < 3 && shape.every((size) => size === 1);
  const right = one || ([1, 2].includes(shape.length) && shape[0] === weight.rows);
  const fit = right && groups > 0 && weight.cols % groups === 0;
  require(fit, "scales-shape", `scales of ${shape} for ${weight.rows} x ${weight.cols}`);
  return groups;
}

/** The integer next to a number, of two the even one. */
function roundEven(number) {
  const below = Math.floor(number);
  const over = number - below;
  if (over === 0.5) return below % 2 === 0 ? below : below + 1;
  return over < 0.5 ? below : below + 1;
}

/** Section 6.1 for one x: a function of a row of q that gives its element of y. */
function withFloats(x, { cols, groups, scale, double }) {
  const fma = double ? fma64 : fma32;
  const width = cols / groups;
  return (q, row) => {
    let t = 0;
    for (let g = 0; g < groups; g++) {
      let s = 0;
      for (let j = g * width; j < (g + 1) * width; j++) {
        const w = q[row * cols + j];
        if (w !== 0) s = fma(w, x[j], s);
      }
      t = fma(s, scale(row, g), t);
    }
    return t + 0;
  };
}

/** Section 6.2 for one token x of binary32; the same. */
function withIntegers(x, { cols, groups, scale, inputScale }) {
  if (!x.every(Number.isFinite)) return () => NaN;
  const largest = x.reduce((most, number) => Math.max(most, Math.abs(number)), 0);
  const u = inputScale ?? Math.fround(largest / 127);
  const a = x.map((number) => (u === 0 ? 0 : roundEven(Math.min(Math.max(Math.fround(number / u), -127), 127))));
  const width = cols / groups;
  return (q, row) => {
    let t = 0;
    for (let g = 0; g < groups; g++) {
      let sum = 0;
      for (let j = g * width; j < (g + 1) * width; j++) sum += a[j] * q[row * cols + j];
      t = fma32(Math.fround(sum), scale(row, g), t);
    }
    return Math.fround(t * u) + 0;
  };
}

/**
 * The elements of y for each row of x, as bytes of the result type.
 *
 * product: names of tensors of the file, {weight, x, bias, input_scale}, but for {activations, result}. Rejects with a Fault.
 */
export async function multiplyScaled(file, product) {
  const scalesName = pairsIn(file).get(product.weight);
  if (scalesName === undefined) throw new RangeError(`no scales of ${product.weight}`);
  const [weight, tokens, scales] = [product.weight, product.x, scalesName].map((name) => file.tensor(name));
  const { rows, cols } = weight;
  const groups = groupsOf(weight, scales);
  const integers = product.activations === "int8";
  require(!integers || weight.dtype.name === "I8", "activations-dtype", `weights of ${weight.dtype.name}`);
  const double = !integers && (weight.dtype.double || tokens.dtype.double);
  const factors = await numbersOf(file, scalesName, double);
  const right = factors.every((number) => number >= 0 && number < Infinity);
  require(right, "scales-value", "a scale is NaN, infinite or negative");
  const scale = (row, g) => (factors.length === 1 ? factors[0] : factors[row * groups + g]);
  const inputScale = product.input_scale === undefined ? null : await staticScale(file, product.input_scale);
  const q = await numbersOf(file, product.weight, double);
  const x = await numbersOf(file, product.x, double);
  const bias = product.bias === undefined ? null : await numbersOf(file, product.bias, double);
  const y = new (double ? Float64Array : Float32Array)(tokens.rows * rows);
  for (let token = 0; token < tokens.rows; token++) {
    const given = x.subarray(token * cols, (token + 1) * cols);
    const multiplyRow = (integers ? withIntegers : withFloats)(given, { cols, groups, scale, double, inputScale });
    for (let row = 0; row < rows; row++) {
      const sum = multiplyRow(q, row);
      y[token * rows + row] = bias === null ? sum : sum + bias[row];
    }
  }
  return bytesOf(y, product.result ?? (double ? "F64" : "F32"));
}

async function staticScale(file, name) {
  const numbers = await numbersOf(file, name, false);
  const right = numbers.length === 1 && numbers[0] > 0 && numbers[0] < Infinity;
  require(right, "input-scale", `${name} is not one number, or one that no input scale is`);
  return numbers[0];
}

/** y as elements of the result type. */
function bytesOf(y, result) {
  const halves = { F16: [5, 10], BF16: [8, 7] }[result];
  const Numbers = { F32: Float32Array, F64: Float64Array }[result];
  const elements = halves === undefined ? new Numbers(y) : Uint16Array.from(y, (number) => half(number, ...halves));
  return new Uint8Array(elements.buffer, elements.byteOffset, elements.byteLength);
}

/** The bits of the float of so many exponent and mantissa bits that is next to a number, of two the even one. */
function half(number, e, m) {
  const infinite = ((1 << e) - 1) << m;
  if (Number.isNaN(number)) return infinite | (1 << (m - 1));
  doubles[0] = number;
  const bits = BigInt.asUintN(64, words[0]);
  const sign = bits >> 63n === 0n ? 0 : 0x8000;
  // the exponent of the least normal number of the narrow float, and that of the number
  const least = 2 - (1 << (e - 1));
  const exponent = Math.max(Number((bits >> 52n) & 2047n) - 1023, least);
  if (exponent > 1 << (e - 1)) return sign | infinite;
  const units = roundEven(Math.abs(number) * 2 ** (m - exponent)) + (exponent - least) * 2 ** m;
  return sign | Math.min(units, infinite);
}
