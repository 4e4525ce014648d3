// A file on disk as a source, for Node.

import { closeSync, fstatSync, openSync, readSync } from "node:fs";

/** Reads what is asked for from a file. Close it in the end. */
export class FileSource {
  constructor(path) {
    this.file = openSync(path, "r");
    this.size = fstatSync(this.file).size;
  }

  async read(start, end) {
    const bytes = new Uint8Array(end - start);
    let at = 0;
    while (at < bytes.length) {
      const n = readSync(this.file, bytes, at, bytes.length - at, start + at);
      if (n === 0) break;
      at += n;
    }
    return bytes.subarray(0, at);
  }

  close() {
    closeSync(this.file);
  }
}
