// Section 3 of SPEC.md: element types, and elements as numbers.

function dtype(name, bits, more = {}) {
  return {
    name,
    bits,
    bytes: Math.max(bits >> 3, 1),
    packed: bits < 8,
    sparse: false,
    // bits of -0; null where there is none
    negativeZero: null,
    // whether products add up in binary64
    double: false,
    // null where there is no product
    kind: "float",
    ...more,
  };
}

const small = (e, m, bias, more) => ({ float: { e, m, bias, ieee: false, nan: [], ...more } });
const sparse = { sparse: true };
const signed = { ...sparse, kind: "signed" };
const unsigned = { ...sparse, kind: "unsigned" };
const double = { double: true };

/** All dtypes by name. */
export const DTYPES = new Map(
  [
    dtype("BOOL", 8, { kind: "unsigned" }),
    dtype("F4", 4, small(2, 1, 1)),
    dtype("F6_E2M3", 6, small(2, 3, 1)),
    dtype("F6_E3M2", 6, small(3, 2, 3)),
    dtype("U8", 8, unsigned),
    dtype("I8", 8, signed),
    dtype("F8_E5M2", 8, { ...sparse, negativeZero: 0x80, ...small(5, 2, 15, { ieee: true }) }),
    dtype("F8_E4M3", 8, { ...sparse, negativeZero: 0x80, ...small(4, 3, 7, { nan: [0x7f, 0xff] }) }),
    dtype("F8_E8M0", 8, { kind: "exponent" }),
    dtype("F8_E4M3FNUZ", 8, { ...sparse, ...small(4, 3, 8, { nan: [0x80] }) }),
    dtype("F8_E5M2FNUZ", 8, { ...sparse, ...small(5, 2, 16, { nan: [0x80] }) }),
    dtype("I16", 16, signed),
    dtype("U16", 16, unsigned),
    dtype("F16", 16, { ...sparse, negativeZero: 0x8000, ...small(5, 10, 15, { ieee: true }) }),
    dtype("BF16", 16, { ...sparse, negativeZero: 0x8000, kind: "bfloat16" }),
    dtype("I32", 32, { ...signed, ...double }),
    dtype("U32", 32, { ...unsigned, ...double }),
    dtype("F32", 32, { ...sparse, negativeZero: 0x80000000, kind: "binary32" }),
    dtype("C64", 64, { kind: "complex" }),
    dtype("F64", 64, { ...sparse, ...double, negativeZero: 0x8000000000000000n, kind: "binary64" }),
    dtype("I64", 64, { ...signed, ...double }),
    dtype("U64", 64, { ...unsigned, ...double }),
  ].map((type) => [type.name, type]),
);

const bits = new DataView(new ArrayBuffer(8));

/** A float of at most 16 bits as a number; format: exponent and mantissa bits, bias, what is not a number. */
function smallFloat(element, width, { e, m, bias, ieee, nan }) {
  if (nan.includes(element)) return NaN;
  const sign = element >> (width - 1) ? -1 : 1;
  const exponent = (element >> m) & ((1 << e) - 1);
  const mantissa = element & ((1 << m) - 1);
  if (ieee && exponent === (1 << e) - 1) return mantissa ? NaN : sign * Infinity;
  if (exponent === 0) return sign * mantissa * 2 ** (1 - bias - m);
  return sign * (1 + mantissa / (1 << m)) * 2 ** (exponent - bias);
}

/**
 * One element as a number, or a BigInt for integers of 64 bits; element: its bits, a BigInt if there are 64.
 *
 * Complex elements have none.
 */
export function valueOf(type, element) {
  switch (type.kind) {
    case "unsigned":
      return element;
    case "signed":
      if (type.bits === 64) return BigInt.asIntN(64, element);
      return (element << (32 - type.bits)) >> (32 - type.bits);
    case "exponent":
      return element === 255 ? NaN : 2 ** (element - 127);
    case "bfloat16":
      bits.setUint32(0, element * 65536);
      return bits.getFloat32(0);
    case "binary32":
      bits.setUint32(0, element);
      return bits.getFloat32(0);
    case "binary64":
      bits.setBigUint64(0, element);
      return bits.getFloat64(0);
    default:
      return smallFloat(element, type.bits, type.float);
  }
}

/** Elements of bytes as their bits: Uint8Array, Uint16Array, Uint32Array or BigUint64Array, not copied. */
export function asBits(bytes, width) {
  const Bits = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array, 8: BigUint64Array }[width];
  return new Bits(bytes.buffer, bytes.byteOffset, bytes.length / width);
}

/** Element i of packed ones. */
export function unpack(bytes, width, i) {
  const at = i * width;
  const byte = Math.floor(at / 8);
  const both = bytes[byte] | ((byte + 1 < bytes.length ? bytes[byte + 1] : 0) << 8);
  return (both >> (at % 8)) & ((1 << width) - 1);
}
