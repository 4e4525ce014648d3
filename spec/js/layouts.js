// Section 4 of SPEC.md: what the arrays of a tile must be, and the elements that they stand for.

import { asBits } from "./dtypes.js";
import { Fault, require } from "./faults.js";
import { sliceOf } from "./rans.js";

const OF_8_BITS = Uint8Array.from({ length: 256 }, (_, byte) => byte.toString(2).replaceAll("0", "").length);
const popcount = (bits) => OF_8_BITS[bits & 255] + OF_8_BITS[bits >>> 8];

/** Values before each slice, as a mask has them. Throws a Fault for a bit of a row that does not exist. */
export function offsetsOfMask(mask, rows, cols) {
  const offsets = new Uint32Array(Math.ceil(rows / 16) + 1);
  for (let i = 0; i + 1 < offsets.length; i++) {
    const height = Math.min(16, rows - 16 * i);
    const integers = sliceOf(mask, i, height, cols);
    let count = 0;
    for (let column = 0; column < cols; column++) {
      const bits = integers[column];
      if (bits >>> height !== 0) throw new Fault("mask-padding", "a bit of a row that does not exist");
      count += popcount(bits);
    }
    offsets[i + 1] = offsets[i] + count;
  }
  return offsets;
}

/** Calls visit(row, column) for each stored position, in the order of `values`. */
export function eachOfMask(mask, rows, cols, visit) {
  for (let first = 0; first < rows; first += 16) {
    const integers = sliceOf(mask, first / 16, Math.min(16, rows - first), cols);
    for (let column = 0; column < cols; column++) {
      for (let bits = integers[column]; bits !== 0; bits &= bits - 1) visit(first + 31 - Math.clz32(bits & -bits), column);
    }
  }
}

/** Verifies that offsets of a mask are those that stand in the file, and that there are so many values. */
export function checkOffsets(expected, given, count) {
  const same = expected.every((offset, i) => offset === given[i]);
  require(same && expected.at(-1) === count, "slice-offsets", "not what the mask gives");
}

/**
 * Verifies a tile by section 4; arrays: Map of array name to bytes.
 *
 * Returns {elements, stored, someSigns}: all elements in row-major order as their bits (bytes, if they are packed); how many
 * are not pruned (null in dense); whether a bit of negative_zeros is set.
 */
export function readTile(tensor, rows, arrays) {
  if (tensor.layout === "dense") return readDense(tensor, rows, arrays.get("values"));
  const { dtype, cols } = tensor;
  const Bits = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array, 8: BigUint64Array }[dtype.bytes];
  const elements = new Bits(rows * cols);
  const read = tensor.layout === "bitmask" ? readBitmask : readPermuted;
  const stored = read(tensor, rows, arrays, elements);
  const signs = arrays.get("negative_zeros");
  const someSigns = signs !== undefined && putSigns(dtype, elements, elements.length - stored, signs);
  return { elements, stored, someSigns };
}

function readDense({ dtype, cols }, rows, values) {
  if (dtype.name === "BOOL") require(values.every((value) => value < 2), "bool-invalid", "an element other than 0 and 1");
  if (dtype.packed) {
    const used = (rows * cols * dtype.bits) % 8;
    require(used === 0 || values.at(-1) >> used === 0, "values-padding", "unused bits that are not zero");
    return { elements: values, stored: null, someSigns: false };
  }
  return { elements: asBits(values, dtype.bytes), stored: null, someSigns: false };
}

function readBitmask({ dtype, cols }, rows, arrays, elements) {
  const mask = arrays.get("mask");
  const values = asBits(arrays.get("values"), dtype.bytes);
  checkOffsets(offsetsOfMask(mask, rows, cols), asBits(arrays.get("slice_offsets"), 4), values.length);
  checkStored(values, dtype);
  let k = 0;
  for (let first = 0; first < rows; first += 16) {
    const integers = sliceOf(mask, first / 16, Math.min(16, rows - first), cols);
    for (let column = 0; column < cols; column++) {
      for (let bits = integers[column]; bits !== 0; bits &= bits - 1) {
        elements[(first + 31 - Math.clz32(bits & -bits)) * cols + column] = values[k++];
      }
    }
  }
  return k;
}

function checkStored(values, { bytes, negativeZero }) {
  const zero = bytes === 8 ? 0n : 0;
  for (let k = 0; k < values.length; k++) {
    if (values[k] === zero || values[k] === negativeZero) throw new Fault("stored-zero", "a stored value that is zero");
  }
}

function readPermuted({ dtype, cols }, rows, arrays, elements) {
  const values = asBits(arrays.get("values"), dtype.bytes);
  const hasGaps = arrays.has("gaps");
  const places = hasGaps ? arrays.get("gaps") : asBits(arrays.get("columns"), cols > 65536 ? 4 : 2);
  const counts = asBits(arrays.get("row_counts"), 4);
  const permutation = asBits(arrays.get("row_permutation"), 2);
  checkRows(counts, permutation, rows, cols);
  const offsets = asBits(arrays.get("slice_offsets"), 4);
  let slots = 0;
  for (let i = 0; i + 1 < offsets.length; i++) {
    require(offsets[i] === slots, "slice-offsets", "not what row_counts gives");
    slots += counts[16 * i];
  }
  require(offsets.at(-1) === slots && slots * 16 === values.length, "slice-offsets", "not what row_counts gives");
  const readRow = hasGaps ? readGaps : readColumns;
  let stored = 0;
  for (let i = 0; i + 1 < offsets.length; i++) {
    for (let lane = 0; lane < 16; lane++) {
      const place = 16 * i + lane;
      const count = place < rows ? counts[place] : 0;
      const first = 16 * offsets[i] + lane;
      if (count > 0) {
        const row = elements.subarray(permutation[place] * cols, (permutation[place] + 1) * cols);
        stored += readRow(values, places, first, count, row, dtype);
      }
      for (let k = first + 16 * count; k < 16 * offsets[i + 1]; k += 16) {
        if (places[k] !== 0 || Number(values[k]) !== 0) throw new Fault("slot-padding", "padding that is not zero");
      }
    }
  }
  return stored;
}

function checkRows(counts, permutation, rows, cols) {
  const seen = new Uint8Array(rows);
  for (let i = 0; i < rows; i++) {
    require(counts[i] <= cols && (i === 0 || counts[i] <= counts[i - 1]), "row-counts", "ascending, or over the columns");
    const row = permutation[i];
    require(row < rows && seen[row] === 0, "row-permutation", "no permutation");
    seen[row] = 1;
    const inOrder = i === 0 || counts[i] < counts[i - 1] || row > permutation[i - 1];
    require(inOrder, "row-permutation", "rows of equal count out of order");
  }
}

/** One row of the form with columns: its slots are every 16th from `first` on. Returns how many elements it has. */
function readColumns(values, columns, first, count, row, { bytes, negativeZero }) {
  const zero = bytes === 8 ? 0n : 0;
  let before = -1;
  for (let i = 0, k = first; i < count; i++, k += 16) {
    const column = columns[k];
    if (column >= row.length) throw new Fault("column-range", `column ${column} of ${row.length}`);
    if (column <= before) throw new Fault("column-order", "columns that do not ascend");
    const value = values[k];
    if (value === zero || value === negativeZero) throw new Fault("stored-zero", "a stored value that is zero");
    row[column] = value;
    before = column;
  }
  return count;
}

/** One row of the form with gaps. */
function readGaps(values, gaps, first, count, row, { bytes, negativeZero }) {
  const zero = bytes === 8 ? 0n : 0;
  let column = 0;
  let stored = 0;
  for (let i = 0, k = first; i < count; i++, k += 16) {
    const gap = gaps[k];
    if (gap === 0 && i > 0) throw new Fault("column-order", "gap 0 behind the first slot");
    column += gap;
    if (column >= row.length) throw new Fault("column-range", `column ${column} of ${row.length}`);
    const value = values[k];
    if (value === negativeZero) throw new Fault("stored-zero", "a stored value that is negative zero");
    if (value === zero) {
      if (gap !== 255 || i + 1 === count) throw new Fault("stored-zero", "a zero that is no filler");
    } else {
      row[column] = value;
      stored += 1;
    }
  }
  return stored;
}

/** Puts negative zeros where the bits say so. Returns whether there was one. */
function putSigns({ bytes, negativeZero }, elements, pruned, signs) {
  require(signs.length === Math.ceil(pruned / 8), "array-size", `negative_zeros of ${signs.length} bytes`);
  const used = pruned % 8;
  require(used === 0 || signs.at(-1) >> used === 0, "negative-zeros-padding", "unused bits that are not zero");
  if (signs.every((byte) => byte === 0)) return false;
  const zero = bytes === 8 ? 0n : 0;
  for (let i = 0, k = 0; i < elements.length; i++) {
    if (elements[i] === zero) {
      if ((signs[k >>> 3] >> (k & 7)) & 1) elements[i] = negativeZero;
      k += 1;
    }
  }
  return true;
}
