// XXH64 with seed 0. The stripes are in halves of 32 bits, which engines compute in registers; the rest, some dozen
// operations a call, is in BigInt.

const P1 = 0x9e3779b185ebca87n;
const P2 = 0xc2b2ae3d27d4eb4fn;
const P3 = 0x165667b19e3779f9n;
const P4 = 0x85ebca77c2b2ae63n;
const P5 = 0x27d4eb2f165667c5n;
const low64 = (a) => BigInt.asUintN(64, a);
const rotate = (a, n) => low64((a << n) | (a >> (64n - n)));
const round = (sum, word) => low64(rotate(low64(sum + word * P2), 31n) * P1);

const P1_HIGH = 0x9e3779b1 | 0;
const P1_LOW = 0x85ebca87 | 0;
const P2_HIGH = 0xc2b2ae3d | 0;
const P2_LOW = 0x27d4eb4f | 0;

/** One of the four sums over all stripes: every 32 bytes, the 8 bytes from `at` on. */
function sumOfLane(view, at, stripes, start) {
  let high = Number(start >> 32n) | 0;
  let low = Number(start & 0xffffffffn) | 0;
  for (let i = 0; i < stripes; i++, at += 32) {
    let a = view.getInt32(at, true);
    let b = view.getInt32(at + 4, true);
    // sum += word * P2, as 16-bit pieces of the low halves
    let a0 = a & 0xffff;
    let a1 = a >>> 16;
    let w = (Math.imul(a1, P2_LOW & 0xffff) + (Math.imul(a0, P2_LOW & 0xffff) >>> 16)) | 0;
    let v = (Math.imul(a0, P2_LOW >>> 16) + (w & 0xffff)) | 0;
    let upper = (Math.imul(a1, P2_LOW >>> 16) + (w >>> 16) + (v >>> 16)) | 0;
    upper = (upper + Math.imul(a, P2_HIGH) + Math.imul(b, P2_LOW)) | 0;
    const sum = (low + Math.imul(a, P2_LOW)) | 0;
    high = (high + upper + (sum >>> 0 < low >>> 0 ? 1 : 0)) | 0;
    // rotated by 31
    a = (sum << 31) | (high >>> 1);
    b = (high << 31) | (sum >>> 1);
    // times P1
    a0 = a & 0xffff;
    a1 = a >>> 16;
    w = (Math.imul(a1, P1_LOW & 0xffff) + (Math.imul(a0, P1_LOW & 0xffff) >>> 16)) | 0;
    v = (Math.imul(a0, P1_LOW >>> 16) + (w & 0xffff)) | 0;
    upper = (Math.imul(a1, P1_LOW >>> 16) + (w >>> 16) + (v >>> 16)) | 0;
    high = (upper + Math.imul(a, P1_HIGH) + Math.imul(b, P1_LOW)) | 0;
    low = Math.imul(a, P1_LOW);
  }
  return (BigInt(high >>> 0) << 32n) | BigInt(low >>> 0);
}

/** Checksum of a Uint8Array, as a BigInt. */
export function xxh64(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const stripes = Math.floor(bytes.length / 32);
  let hash = P5;
  if (stripes > 0) {
    const sums = [low64(P1 + P2), P2, 0n, low64(-P1)].map((start, lane) => sumOfLane(view, 8 * lane, stripes, start));
    hash = low64(rotate(sums[0], 1n) + rotate(sums[1], 7n) + rotate(sums[2], 12n) + rotate(sums[3], 18n));
    for (const sum of sums) hash = low64((hash ^ round(0n, sum)) * P1 + P4);
  }
  hash = low64(hash + BigInt(bytes.length));
  let at = 32 * stripes;
  for (; at + 8 <= bytes.length; at += 8) {
    hash = low64(rotate(hash ^ round(0n, view.getBigUint64(at, true)), 27n) * P1 + P4);
  }
  if (at + 4 <= bytes.length) {
    hash = low64(rotate(hash ^ low64(BigInt(view.getUint32(at, true)) * P1), 23n) * P2 + P3);
    at += 4;
  }
  for (; at < bytes.length; at++) hash = low64(rotate(hash ^ low64(BigInt(bytes[at]) * P5), 11n) * P1);
  hash = low64((hash ^ (hash >> 33n)) * P2);
  hash = low64((hash ^ (hash >> 29n)) * P3);
  return hash ^ (hash >> 32n);
}
