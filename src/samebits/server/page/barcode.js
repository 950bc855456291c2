// The logprobs of an answer as a picture: a column a float32, a cell a bit, the sign on top.

const BITS = 32;
const CELL_HEIGHT = 2;
const WIDTH = 1536; // about; the style sheet fits the picture to its place
const NARROWEST_MARK = 12; // a single bit that differs must not be overlooked
const COLOURS = { bits: "#4f7fe8", difference: "#e5484d" }; // both stand out on light and on dark

// `words`: one 32-bit word a column. `label` is read out. `kind`: bits or difference.
export function barcode(words, label, kind) {
  const canvas = document.createElement("canvas");
  const columns = Math.max(1, words.length);
  const cell = Math.max(1, Math.round(WIDTH / columns));
  canvas.width = columns * cell;
  canvas.height = BITS * CELL_HEIGHT;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  canvas.className = "barcode";
  const context = canvas.getContext("2d");
  context.fillStyle = COLOURS[kind];
  const width = kind === "difference" ? Math.max(cell, NARROWEST_MARK) : cell;
  words.forEach((bits, column) => {
    for (let bit = 0; bit < BITS; bit += 1) {
      if ((bits >>> (BITS - 1 - bit)) & 1) context.fillRect(column * cell, bit * CELL_HEIGHT, width, CELL_HEIGHT);
    }
  });
  return canvas;
}
