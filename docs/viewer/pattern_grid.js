// Cells of a pattern: a matrix is drawn with at most so many rows and columns of them.

const MOST_CELLS = 128;

/** How many rows and columns of cells a matrix of that size is drawn with. */
export function gridOf({ rows, cols }) {
  return { gridRows: Math.min(rows, MOST_CELLS), gridCols: Math.min(cols, MOST_CELLS) };
}

/** Where cell i of n begins in `size` rows or columns: the first whose cell it is. */
export function startOf(i, n, size) {
  return Math.ceil((i * size) / n);
}
