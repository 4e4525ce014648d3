// Lists the tensors of a file, writes them, and multiplies them: the program that spec/conformance.md describes.
//
//   node spec/js/sparsefmt_cat.js FILE
//   node spec/js/sparsefmt_cat.js FILE TENSOR
//   node spec/js/sparsefmt_cat.js --matvec FILE TENSOR < x > y
//   node spec/js/sparsefmt_cat.js --scaled FILE weight=TENSOR x=TENSOR [bias=TENSOR] [result=DTYPE] [activations=int8]
//                                 [input_scale=TENSOR] > y
//   node spec/js/sparsefmt_cat.js --answer        requests on standard input, so that thousands of them take one process
//
// A request is a line of JSON, [FILE], [FILE, TENSOR], [FILE, TENSOR, x in base64] or [FILE, {"weight": TENSOR, …}], and so is
// its answer: {"text": what is listed}, {"bytes": in base64} or {"error": code}.

import { readFileSync, writeSync } from "node:fs";
import { createInterface } from "node:readline";

import { FileSource } from "./file_source.js";
import { multiply } from "./products.js";
import { Fault, open } from "./reader.js";
import { multiplyScaled } from "./scaled.js";

async function answer(path, name, x) {
  const source = new FileSource(path);
  try {
    const file = await open(source);
    if (name === undefined) return { text: list(file) };
    if (typeof name === "object") return { bytes: await multiplyScaled(file, name) };
    const dense = await file.readDense(name);
    return { bytes: x === undefined ? dense : product(file.tensor(name), dense, x) };
  } finally {
    source.close();
  }
}

function list(file) {
  const lines = file.names.map((name) => {
    const { dtype, shape, layout } = file.tensor(name);
    // eslint-disable-next-line no-control-regex
    const shown = name.replace(/[\x00-\x1f\x7f\\]/g, (char) => `\\x${char.charCodeAt(0).toString(16).padStart(2, "0")}`);
    return `${shown}\t${dtype.name}\t[${shape.join(",")}]\t${layout}\n`;
  });
  return lines.join("");
}

/** y as bytes; given: bytes of x in the type that the product adds up in. */
function product(tensor, dense, given) {
  const Numbers = tensor.dtype.double ? Float64Array : Float32Array;
  const x = new Numbers(new Uint8Array(given).buffer);
  if (x.length !== tensor.cols) throw new RangeError(`${x.length} elements for ${tensor.cols} columns`);
  const y = multiply(tensor, dense, x);
  return new Uint8Array(y.buffer, y.byteOffset, y.byteLength);
}

/** NAME=VALUE, … as an object; undefined if weight or x is not there, or something that is not known. */
function productOf(given) {
  const parts = given.map((text) => [text.slice(0, text.indexOf("=")), text.slice(text.indexOf("=") + 1)]);
  const known = ["weight", "x", "bias", "activations", "input_scale", "result"];
  const product = Object.fromEntries(parts);
  const right = parts.every(([key]) => known.includes(key)) && "weight" in product && "x" in product;
  return right ? product : undefined;
}

function write(bytes) {
  for (let at = 0; at < bytes.length; ) at += writeSync(1, bytes, at);
}

async function answerAll() {
  for await (const line of createInterface({ input: process.stdin })) {
    const [path, name, x] = JSON.parse(line);
    let said;
    try {
      const { text, bytes } = await answer(path, name, x === undefined ? undefined : Buffer.from(x, "base64"));
      said = bytes === undefined ? { text } : { bytes: Buffer.from(bytes).toString("base64") };
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
      said = { error: error.code };
    }
    write(Buffer.from(`${JSON.stringify(said)}\n`));
  }
}

async function main(given) {
  const matvec = given[0] === "--matvec";
  const scaled = given[0] === "--scaled";
  const [path, ...rest] = matvec || scaled ? given.slice(1) : given;
  const name = scaled ? productOf(rest) : rest[0];
  if (path === undefined || ((matvec || scaled) && name === undefined)) {
    console.error("usage: sparsefmt_cat.js [--matvec] FILE [TENSOR]");
    console.error("       sparsefmt_cat.js --scaled FILE weight=TENSOR x=TENSOR [bias=TENSOR] [result=DTYPE] ...");
    return 2;
  }
  try {
    const { text, bytes } = await answer(path, name, matvec ? readFileSync(0) : undefined);
    write(bytes ?? Buffer.from(text));
    return 0;
  } catch (error) {
    console.error(error instanceof Fault ? error.message : `failed: ${error.message}`);
    return 1;
  }
}

if (process.argv[2] === "--answer") await answerAll();
else process.exitCode = await main(process.argv.slice(2));
