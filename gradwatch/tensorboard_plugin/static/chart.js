// What the line charts share: a vertical axis with rails for what is no ordinary value.
import { decades } from "./axis.js";
import { css, specialColors } from "./colors.js";
import { FLAG, number, power } from "./format.js";

const MANY = 100;

/** Height of the rails above and below a chart, in pixels. */
const RAIL = 9;

/** A vertical axis, logarithmic or from 0 to 1, with a rail above for NaN and infinity and one below for exact zeros. */
export class Axis {
  /**
   * @param kind "log", "share" or "linear"
   * @param values finite ones that have to be seen
   * @param top, bottom of the chart with its rails, in pixels
   */
  constructor(kind, values, top, bottom) {
    this.kind = kind;
    this.top = top + RAIL;
    this.bottom = bottom - (kind === "log" ? RAIL : 2);
    const places = values.map((value) => this.#place(value)).filter(Number.isFinite);
    let [low, high] = [Infinity, -Infinity];
    for (const place of places) [low, high] = [Math.min(low, place), Math.max(high, place)];
    if (!places.length) [low, high] = [kind === "log" ? -1 : 0, kind === "log" ? 0 : 1];
    if (kind === "share") [low, high] = [0, Math.max(0.1, Math.min(1, high * 1.05))];
    const least = kind === "log" ? 1 : Math.abs(high) * 0.1 || 1;
    if (kind !== "share" && high - low < least) [low, high] = [(low + high - least) / 2, (low + high + least) / 2];
    const margin = kind === "share" ? 0 : (high - low) * 0.06;
    [this.low, this.high] = [low - margin, high + margin];
  }

  #place(value) {
    return this.kind === "log" ? Math.log10(value) : value;
  }

  /** The pixel of a value with its flag; NaN for what was not recorded. */
  y(value, flag = FLAG.value) {
    if (flag === FLAG.none) return NaN;
    if (flag === FLAG.nan || flag === FLAG.inf) return this.top - RAIL / 2;
    if (flag === FLAG.negativeInf) return this.bottom + RAIL / 2;
    if (flag === FLAG.zero || value === 0) {
      if (this.kind === "log") return this.bottom + RAIL / 2;
      value = 0;
    }
    const share = (this.#place(value) - this.low) / (this.high - this.low);
    return this.bottom - Math.min(1, Math.max(0, share)) * (this.bottom - this.top);
  }

  /** Lines and numbers. */
  draw(ctx, left, right, ink) {
    ctx.lineWidth = 1;
    ctx.textAlign = "right";
    ctx.textBaseline = "middle";
    ctx.fillStyle = ink.muted;
    ctx.strokeStyle = ink.line;
    ctx.beginPath();
    for (const [place, text] of this.#marks()) {
      const y = Math.round(this.bottom - ((place - this.low) / (this.high - this.low)) * (this.bottom - this.top)) + 0.5;
      if (y < this.top - 1 || y > this.bottom + 1) continue;
      ctx.moveTo(left, y);
      ctx.lineTo(right, y);
      ctx.fillText(text, left - 6, y);
    }
    ctx.stroke();
  }

  #marks() {
    const wanted = Math.max(2, (this.bottom - this.top) / 26);
    if (this.kind === "log") {
      const whole = decades(this.low, this.high, wanted).map((exponent) => [exponent, power(exponent)]);
      if (whole.length > 1) return whole;
      return [this.low + (this.high - this.low) * 0.15, this.high - (this.high - this.low) * 0.15].map((at) => [
        at,
        number(10 ** at, 2),
      ]);
    }
    if (this.kind === "share") return [0, this.high / 2, this.high].map((value) => [value, `${number(value * 100, 2)} %`]);
    return [0.1, 0.5, 0.9].map((share) => this.low + share * (this.high - this.low)).map((value) => [value, number(value, 2)]);
  }
}

/** Of many points on one pixel the first, the lowest, the highest and the last: what a line through all of them would cover. */
function thinned(points, width) {
  if (points.length < 3 * width) return points;
  const kept = [];
  for (let from = 0; from < points.length;) {
    let [to, low, high] = [from, from, from];
    while (to < points.length && Math.floor(points[to].x) === Math.floor(points[from].x) && points[to].flag === points[from].flag) {
      if (points[to].y < points[low].y) low = to;
      if (points[to].y > points[high].y) high = to;
      to++;
    }
    for (const at of new Set([from, Math.min(low, high), Math.max(low, high), to - 1])) kept.push(points[at]);
    from = to;
  }
  return kept;
}

/** A line through points {x, y, flag}; it breaks where nothing was recorded, and what is no ordinary value is a dot on a rail. */
export function drawLine(ctx, all, color, theme, { dots = false, width = 1.5, dash = [] } = {}) {
  const points = thinned(all, (all.at(-1)?.x ?? 0) - (all[0]?.x ?? 0));
  const special = specialColors(theme);
  ctx.strokeStyle = ctx.fillStyle = color;
  ctx.lineWidth = width;
  ctx.lineJoin = "round";
  ctx.setLineDash(dash);
  ctx.beginPath();
  let drawing = false;
  for (const { x, y, flag } of points) {
    if (flag !== FLAG.value) drawing = false;
    else if (drawing) ctx.lineTo(x, y);
    else {
      ctx.moveTo(x, y);
      ctx.lineTo(x + 0.01, y);
      drawing = true;
    }
  }
  ctx.stroke();
  ctx.setLineDash([]);
  for (const { x, y, flag } of points) {
    if (flag === FLAG.none || (flag === FLAG.value && !dots)) continue;
    const mark = { [FLAG.nan]: special.nan, [FLAG.inf]: special.inf, [FLAG.negativeInf]: special.inf, [FLAG.zero]: special.zero }[
      flag
    ];
    ctx.fillStyle = mark ? css(mark) : color;
    ctx.beginPath();
    ctx.arc(x, y, mark && points.length > MANY ? 1.5 : 2.5, 0, 2 * Math.PI);
    ctx.fill();
  }
}
