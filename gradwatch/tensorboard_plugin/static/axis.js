// Places of round numbers along a scale.
import { count } from "./format.js";

/** Round steps between two, at most about `wanted` of them. */
function ticks(from, to, wanted) {
  const rough = Math.max(1, (to - from) / Math.max(1, wanted));
  const size = 10 ** Math.floor(Math.log10(rough));
  const every = Math.max(1, [1, 2, 5, 10].find((factor) => factor * size >= rough) * size);
  const found = [];
  for (let value = Math.ceil(from / every) * every; value <= to; value += every) found.push(value);
  return found;
}

/** Whole decades between two exponents, at most about `wanted` of them. */
export function decades(low, high, wanted) {
  const every = Math.max(1, Math.ceil((high - low) / Math.max(1, wanted)));
  const found = [];
  for (let exponent = Math.ceil(low / every) * every; exponent <= high; exponent += every) found.push(exponent);
  return found;
}

/** Steps ↔ pixels: the steps `from` to `to`, both seen in full, over a width. */
export class Steps {
  constructor(from, to, width) {
    this.from = from;
    this.to = to;
    this.width = width;
  }

  /** Where a step begins, in pixels. */
  x(step) {
    return ((step - this.from) / (this.to + 1 - this.from)) * this.width;
  }

  /** Where the middle of a step is, in pixels. */
  center(step) {
    return this.x(step + 0.5);
  }

  /** The step at a pixel. */
  step(x) {
    const step = Math.floor(this.from + (x / this.width) * (this.to + 1 - this.from));
    return Math.min(this.to, Math.max(this.from, step));
  }

  /** The whole axis with its numbers, drawn below `top`. */
  draw(ctx, left, top, colors) {
    ctx.fillStyle = colors.muted;
    ctx.strokeStyle = colors.line;
    ctx.lineWidth = 1;
    ctx.textBaseline = "top";
    const marks = ticks(this.from, this.to, this.width / 90);
    ctx.beginPath();
    for (const step of marks) {
      const x = Math.round(left + this.center(step)) + 0.5;
      ctx.moveTo(x, top);
      ctx.lineTo(x, top + 4);
      const text = count(step);
      const half = ctx.measureText(text).width / 2;
      ctx.textAlign = "left";
      ctx.fillText(text, Math.min(left + this.width - 2 * half, Math.max(left, x - half)), top + 6);
    }
    ctx.stroke();
  }
}
