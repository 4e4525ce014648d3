// A pattern on a canvas: how many elements of each cell are not zero.

import { startOf } from "./pattern_grid.js";

const channels = (color) => color.match(/\d+/g).slice(0, 3).map(Number);

/** Colors of no and of all elements, and of what has not been read, as the style sheet has them. */
export function colors(canvas) {
  const style = getComputedStyle(canvas);
  return { none: channels(style.backgroundColor), all: channels(style.color), unread: channels(style.outlineColor) };
}

/** Share of elements that are not zero in a cell; pattern: what the worker sent. */
export function share({ counts, gridRows, gridCols }, { rows, cols }, r, c) {
  const height = startOf(r + 1, gridRows, rows) - startOf(r, gridRows, rows);
  const width = startOf(c + 1, gridCols, cols) - startOf(c, gridCols, cols);
  return counts[r * gridCols + c] / (height * width);
}

/** The highest share of all cells that have been read: what is drawn in full color. */
export function highest(pattern, row) {
  let most = 0;
  for (let r = 0; r < pattern.read; r++) {
    for (let c = 0; c < pattern.gridCols; c++) most = Math.max(most, share(pattern, row, r, c));
  }
  return most;
}

/** Draws a pattern as one pixel a cell; a vector lies. Returns a canvas of that size. */
export function drawCells(pattern, row, { none, all, unread }) {
  const { gridRows, gridCols, read } = pattern;
  const lies = isLying(row);
  const image = new ImageData(lies ? gridRows : gridCols, lies ? gridCols : gridRows);
  const full = highest(pattern, row) || 1;
  for (let r = 0; r < gridRows; r++) {
    for (let c = 0; c < gridCols; c++) {
      const part = r < read ? share(pattern, row, r, c) / full : 0;
      const at = 4 * (r * gridCols + c);
      const from = r < read ? none : unread;
      // a cell with few elements is still seen: 15 % of the color at least
      const weight = part > 0 ? 0.15 + 0.85 * part : 0;
      for (let k = 0; k < 3; k++) image.data[at + k] = from[k] + (all[k] - from[k]) * weight;
      image.data[at + 3] = 255;
    }
  }
  const canvas = document.createElement("canvas");
  canvas.width = image.width;
  canvas.height = image.height;
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** A tensor of one dimension is n x 1, and is drawn as 1 x n. */
export function isLying(row) {
  return row.cols === 1 && row.rows > 1;
}
