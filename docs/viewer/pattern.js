// What a worker makes of decoded tiles: how dense they are, cell by cell, and single elements as text.

import { heightOf } from "../../spec/js/reader.js";
import { unpack, valueOf } from "../../spec/js/dtypes.js";
import { numberText } from "./format.js";
import { gridOf, startOf } from "./pattern_grid.js";

/** Bits of an element of which one is set if it is not the number 0, in halves of 32 bits; null if it never is. */
function magnitude({ name, bits, negativeZero }) {
  if (name === "F8_E8M0") return null; // it has no zero
  if (bits < 8) return { low: (1 << (bits - 1)) - 1 };
  if (name === "C64") return { low: 0x7fffffff, high: 0x7fffffff };
  if (bits === 64) return { low: -1, high: negativeZero === null ? -1 : 0x7fffffff };
  return { low: negativeZero === null ? -1 : Number(negativeZero) - 1 };
}

/** Counts elements that are not zero in each cell of a tensor; tiles are added one by one. */
export class Density {
  constructor(tensor) {
    Object.assign(this, gridOf(tensor));
    this.tensor = tensor;
    this.counts = new Uint32Array(this.gridRows * this.gridCols);
    this.nonzeros = 0;
    this.magnitude = magnitude(tensor.dtype);
    this.cellOfColumn = new Uint8Array(tensor.cols);
    for (let c = 0; c < this.gridCols; c++) {
      const end = startOf(c + 1, this.gridCols, tensor.cols);
      this.cellOfColumn.fill(c, startOf(c, this.gridCols, tensor.cols), end);
    }
  }

  /** The first row of cells that tile t has elements of. */
  firstCellRow(t) {
    return Math.floor((t * this.tensor.tileRows * this.gridRows) / this.tensor.rows);
  }

  add(t, elements) {
    const { tensor, gridRows, gridCols, counts } = this;
    const isNonzero = this.test(elements);
    const height = heightOf(tensor, t);
    for (let r = 0; r < height; r++) {
      const row = t * tensor.tileRows + r;
      const line = Math.floor((row * gridRows) / tensor.rows) * gridCols;
      for (let c = 0, i = r * tensor.cols; c < tensor.cols; c++, i++) {
        if (isNonzero(i)) counts[line + this.cellOfColumn[c]] += 1;
      }
    }
    this.nonzeros = counts.reduce((sum, count) => sum + count, 0);
  }

  /** Says whether element i is not zero. */
  test(elements) {
    if (this.magnitude === null) return () => true;
    const { low, high } = this.magnitude;
    const { packed, bits } = this.tensor.dtype;
    if (packed) return (i) => (unpack(elements, bits, i) & low) !== 0;
    if (bits < 64) return (i) => (elements[i] & low) !== 0;
    const halves = new Uint32Array(elements.buffer, elements.byteOffset, 2 * elements.length);
    return (i) => (halves[2 * i] & low) !== 0 || (halves[2 * i + 1] & high) !== 0;
  }
}

/** Element i of a decoded tile as text. */
export function elementText(dtype, elements, i) {
  if (dtype.packed) return numberText(valueOf(dtype, unpack(elements, dtype.bits, i)));
  if (dtype.kind !== "complex") return numberText(valueOf(dtype, elements[i]));
  const [real, imaginary] = new Float32Array(BigUint64Array.of(elements[i]).buffer);
  const text = numberText(imaginary);
  return `${numberText(real)}${text.startsWith("-") ? "" : "+"}${text}i`;
}
