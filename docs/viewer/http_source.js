// A file that `sparsefmt view` serves on this machine, as a source: what is asked for comes in requests for ranges.

export class HttpSource {
  constructor(url, size) {
    this.url = url;
    this.size = size;
  }

  async read(start, end) {
    if (start === end) return new Uint8Array(0);
    let response;
    try {
      response = await fetch(this.url, { headers: { Range: `bytes=${start}-${end - 1}` }, cache: "no-store" });
    } catch {
      throw new Error("sparsefmt view has been stopped");
    }
    if (response.status !== 206) throw new Error(`the file cannot be read any more (${response.status})`);
    return new Uint8Array(await response.arrayBuffer());
  }
}
