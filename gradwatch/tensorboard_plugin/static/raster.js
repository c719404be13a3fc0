// Rows of colour codes → pixels.
import { CODE, lookup, pixelOf } from "./colors.js";

/** Which columns of a grid each pixel shows: `first` and `last`, (width,); −1 where none. */
function columnsOfPixels(grid, steps, width) {
  const [first, last] = [new Int32Array(width), new Int32Array(width)];
  const perPixel = (steps.to + 1 - steps.from) / width;
  let several = false;
  for (let x = 0; x < width; x++) {
    first[x] = last[x] = grid.column(steps.from + (x + 0.5) * perPixel);
    if (first[x] < 0) continue;
    // A step narrower than a pixel must not fall between two of them.
    while (first[x] > 0 && grid.steps[first[x]] > steps.from + x * perPixel && (x === 0 || first[x] - 1 > last[x - 1])) first[x]--;
    several ||= last[x] > first[x];
  }
  return { first, last, several };
}

/** Paints the rows of a heat-map that are in view. */
export class Raster {
  constructor(canvas) {
    this.canvas = canvas;
    this.image = null;
    this.columns = new WeakMap();
    this.key = "";
  }

  /**
   * @param rows what is in view, each {codes: Uint8Array, grid, top, height} in pixels of the device
   * @param steps axis.Steps of the window
   * @param scale of the codes
   * @param theme "light" or "dark"
   * @param ground colour between the rows, [red, green, blue]
   */
  draw(width, height, rows, steps, scale, theme, ground) {
    const ctx = this.canvas.getContext("2d");
    if (this.image?.width !== width || this.image?.height !== height) this.image = ctx.createImageData(width, height);
    const key = `${width} ${steps.from} ${steps.to}`;
    if (key !== this.key) this.columns = new WeakMap();
    this.key = key;
    const pixels = new Uint32Array(this.image.data.buffer);
    pixels.fill(pixelOf(ground));
    const colors = lookup(scale.palette, theme);
    for (const row of rows) {
      let columns = this.columns.get(row.grid);
      if (!columns) this.columns.set(row.grid, (columns = columnsOfPixels(row.grid, steps, width)));
      this.#row(pixels, width, height, row, columns, colors, scale.badness);
    }
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.putImageData(this.image, 0, 0);
  }

  #row(pixels, width, height, { codes, top, height: rowHeight }, { first, last, several }, colors, badness) {
    const from = Math.max(0, top);
    const to = Math.min(height, top + rowHeight);
    if (to <= from) return;
    const line = pixels.subarray(from * width, (from + 1) * width);
    for (let x = 0; x < width; x++) {
      let code = last[x] < 0 ? CODE.none : codes[last[x]];
      if (several) {
        for (let column = first[x]; column < last[x]; column++) if (badness[codes[column]] > badness[code]) code = codes[column];
      }
      line[x] = colors[code];
    }
    for (let y = from + 1; y < to; y++) pixels.copyWithin(y * width, from * width, (from + 1) * width);
  }
}
