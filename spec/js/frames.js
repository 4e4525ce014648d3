// Section 5.2 of SPEC.md: one frame of zstd that fills its bytes.

import { Fault, require } from "./faults.js";
import { decodeFrame, frameHeader, MAGIC, ZstdError } from "./zstd.js";

/** Whether bytes begin like a frame of zstd. */
export function isFrame(bytes) {
  return bytes.length >= 4 && MAGIC.every((byte, i) => bytes[i] === byte);
}

/** Header of a frame that states its content size. Throws Faults of those two codes. */
export function readHeader(bytes, corrupt, withoutSize) {
  const header = faultIfCorrupt(() => frameHeader(bytes), corrupt);
  require(header.contentSize !== null, withoutSize, "a frame without content size");
  return header;
}

/** The content of a frame whose header has been read, and whose size has been compared. */
export function readContent(bytes, header, corrupt) {
  require(header.dictionary === 0, corrupt, "a frame with a dictionary");
  require(header.windowSize <= Math.max(header.contentSize, 1024), corrupt, "a window over the size");
  return faultIfCorrupt(() => decodeFrame(bytes, header), corrupt);
}

function faultIfCorrupt(decode, code) {
  try {
    return decode();
  } catch (error) {
    if (error instanceof ZstdError) throw new Fault(code, error.message);
    throw error;
  }
}
