// Sections 7 and 8 of SPEC.md: how a file is refused, and the limits.

/** A file is not as SPEC.md says. `code` is one of section 7. */
export class Fault extends Error {
  constructor(code, message) {
    super(`${code}: ${message}`);
    this.name = "Fault";
    this.code = code;
  }
}

/** Throws a Fault unless the condition holds. */
export function require(condition, code, message) {
  if (!condition) throw new Fault(code, message);
}

export const MAX_INDEX_BYTES = 268435456;
export const MAX_CODED_INDEX_BYTES = 16777216;
export const MAX_INDEX_RATIO = 32;
export const MAX_INDEX_ARRAY = 1024;
export const MAX_INDEX_DEPTH = 16;
export const MAX_TENSORS = 1048576;
export const MAX_NAME_BYTES = 1024;
export const MAX_METADATA_BYTES = 16777216;
export const MAX_NDIM = 32;
export const MAX_TENSOR_BITS = 9223372036854775807n;
export const MAX_CHUNK_BYTES = 68719476736;
export const MAX_SPARSE_COLS = 2147483648;
export const MAX_SPARSE_TILE_ROWS = 65536;
export const MAX_SPARSE_TILE_POSITIONS = 2147483647;
export const MAX_ZSTD_RATIO = 32768;
export const MAX_RANS_RATIO = 262144;
export const MAX_MODEL_BYTES = 1048576;
