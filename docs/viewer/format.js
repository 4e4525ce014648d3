// Numbers, names and elements as text.

/** Characters that are not seen, or that turn what stands around them: a name that has them is text all the same. */
// eslint-disable-next-line no-control-regex
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

/** A text from a file on one line, with what cannot be seen spelled out, and no longer than `most` characters. */
export function safeText(text, most = 1024) {
  const shown = text.length > most ? `${text.slice(0, most)}…` : text;
  return shown.replace(UNSEEN, (char) => `\\u{${char.charCodeAt(0).toString(16)}}`);
}

/** Bytes in decimal units, three digits: "1.23 GB". */
export function bytesText(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  let value = bytes;
  let unit = "";
  for (unit of ["kB", "MB", "GB", "TB"]) {
    value /= 1000;
    if (value < 999.5) break;
  }
  return `${value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0)} ${unit}`;
}

/** A count in three digits: "22.7 M". */
export function countText(count) {
  if (count < 100000) return count.toLocaleString("en-US");
  let value = count;
  let unit = "";
  for (unit of ["k", "M", "G", "T", "P", "E"]) {
    value /= 1000;
    if (value < 999.5) break;
  }
  return `${value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0)} ${unit}`;
}

/** A share in percent; 0 % and 100 % are said only of none and of all. */
export function percentText(part, whole) {
  if (whole === 0) return "–";
  if (part === 0) return "0 %";
  if (part === whole) return "100 %";
  const percent = (100 * part) / whole;
  if (percent < 0.1) return "< 0.1 %";
  if (percent > 99.9) return "> 99.9 %";
  return `${percent.toFixed(1)} %`;
}

/** "4096 × 1024"; "8 × (14336 × 4096)" for a stack of matrices. */
export function shapeText(shape, rowDims) {
  if (shape.length === 0) return "scalar";
  if (rowDims > 1) return `${shape.slice(0, rowDims - 1).join(" × ")} × (${shape.slice(rowDims - 1).join(" × ")})`;
  return shape.join(" × ");
}

/** A number in a few digits. Zeros, signs of zeros, NaN and infinities are said as they are. */
export function numberText(value) {
  if (typeof value === "bigint") return value.toString();
  if (Object.is(value, -0)) return "-0";
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value < 0 ? "-Inf" : "Inf";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-2) return value.toExponential(2).replace("e+", "e");
  return value.toPrecision(size >= 1000 ? 4 : 3);
}
