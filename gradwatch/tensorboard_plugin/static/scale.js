// From values to codes of colours.
import { CODE, CODES } from "./colors.js";
import { FLAG, power } from "./format.js";
import { quantile } from "./grid.js";

const SAMPLE = 40000;
const MEDIAN_ROWS = 200;
const DECADES_AT_MOST = 14;

/** How a statistic is coloured; a count of zero is the healthy end of its scale, and nothing to be pointed out. */
export function kindOf(statistic) {
  return statistic.scale === "log" && ["elements", "tensors"].includes(statistic.unit) ? "count" : statistic.scale;
}

/** From values to colours: the ends of the scale, its palette, and the marks of its legend. */
export class Scale {
  /**
   * @param kind "log", "count", "share", "linear" (signed) or "difference"
   * @param grid the values that the ends are taken from
   * @param statistic of the layout
   */
  constructor(kind, grid, statistic) {
    this.kind = kind;
    this.statistic = statistic;
    this.palette = kind === "linear" || kind === "difference" ? "diverging" : "viridis";
    const sample = this.#sample(grid);
    if (kind === "share") [this.low, this.high] = [0, 1];
    else if (kind === "count") [this.low, this.high] = [0, Math.max(1, Math.ceil(quantile(sample, 1) || 0))];
    else if (this.palette === "diverging") {
      const widest = Math.max(Math.abs(quantile(sample, 0.005)), Math.abs(quantile(sample, 0.995))) || 1;
      this.high = kind === "difference" && statistic.scale === "log" ? Math.max(1, Math.ceil(widest)) : widest;
      this.low = -this.high;
    } else {
      this.high = Math.ceil(quantile(sample, 0.995) || 0);
      this.low = Math.max(Math.floor(quantile(sample, 0.005) || 0), this.high - DECADES_AT_MOST);
      if (this.high - this.low < 2) this.low = this.high - 2;
    }
    this.middle = sample.length ? this.#share(quantile(sample, 0.5)) : 0.5;
    this.badness = this.#badness();
  }

  #sample(grid) {
    const stride = Math.max(1, Math.floor(grid.values.length / SAMPLE));
    const sample = [];
    for (let at = 0; at < grid.values.length; at += stride) {
      if (grid.flags[at] === FLAG.value) sample.push(this.#stretched(grid.values[at]));
    }
    return Float64Array.from(sample.filter(Number.isFinite)).sort();
  }

  #stretched(value) {
    if (this.kind === "log") return Math.log10(value);
    return this.kind === "count" ? Math.log10(1 + value) : value;
  }

  #share(stretched) {
    const share = (stretched - this.low) / (this.high - this.low);
    return share > 0 ? Math.min(1, share) : 0;
  }

  /** Where a value lies on the scale, from 0 to 1. */
  place(value) {
    return this.#share(this.#stretched(value));
  }

  /** The code of a value with its flag. */
  code(value, flag) {
    if (flag === FLAG.value) {
      if (this.kind === "log" && value === 0) return CODE.zero;
      return Math.round(this.place(value) * (CODES - 1));
    }
    if (flag === FLAG.nan) return CODE.nan;
    if (flag === FLAG.inf) return CODE.inf;
    if (flag === FLAG.negativeInf) return CODE.negativeInf;
    if (flag === FLAG.none) return CODE.none;
    return this.kind === "log" || this.kind === "difference" ? CODE.zero : Math.round(this.place(0) * (CODES - 1));
  }

  /** Whether what is usual is said by the other layers of the step, for lack of a range that is good. */
  get relative() {
    return this.kind === "log" && !this.statistic.good;
  }

  /** How much a code deserves to be seen among others; the ordinary ones by their distance from what is healthy or usual. */
  #badness() {
    const badness = new Float32Array(256);
    const good = this.statistic.good?.map((value) => this.place(value));
    for (let code = 0; code < CODES; code++) {
      const place = code / (CODES - 1);
      if (this.kind === "share" || this.kind === "count") badness[code] = 1 + place;
      else if (this.palette === "diverging") badness[code] = 1 + Math.abs(place - 0.5);
      else if (good)
        badness[code] = 1 + Math.max(0, good[0] - place, place - good[1]) + Math.abs(place - (good[0] + good[1]) / 2) / 1e3;
      else badness[code] = 1 + Math.abs(place - this.middle);
    }
    badness[CODE.zero] = 3;
    badness[CODE.inf] = badness[CODE.negativeInf] = 4;
    badness[CODE.nan] = 5;
    return badness;
  }

  /** Marks of the legend: {place, text}. */
  marks() {
    const at = (value, text) => ({ place: (value - this.low) / (this.high - this.low), text });
    if (this.kind === "share") return [0, 0.25, 0.5, 0.75, 1].map((value) => at(value, `${value * 100} %`));
    if (this.kind === "count")
      return Array.from({ length: this.high + 1 }, (_, exponent) => at(exponent, exponent ? power(exponent) : "0"));
    if (this.kind === "log") {
      const every = Math.ceil((this.high - this.low) / 6);
      const marks = [];
      for (let exponent = this.high; exponent >= this.low; exponent -= every) marks.push(at(exponent, power(exponent)));
      return marks.reverse();
    }
    const decades = this.kind === "difference" && this.statistic.scale === "log";
    const text = (value) => {
      if (value === 0) return decades ? "equal" : "0";
      const size = Math.abs(value);
      const amount = decades ? (size <= 4 ? `×${10 ** size}` : `×${power(size)}`) : `+${Number(size.toPrecision(2))}`;
      return value > 0 ? amount : amount.replace("×", "÷").replace("+", "−");
    };
    return [this.low, 0, this.high].map((value) => at(value, text(value)));
  }
}

function sampleOf(rows) {
  const stride = Math.max(1, Math.ceil(rows / MEDIAN_ROWS));
  return Array.from({ length: Math.ceil(rows / stride) }, (_, at) => at * stride);
}

/** The colour codes of rows and of groups of rows, computed when they are first seen. */
export class Painter {
  constructor(grid, scale) {
    this.grid = grid;
    this.scale = scale;
    this.kept = new Map();
  }

  /** Codes of one row, (columns,). */
  row(row) {
    if (row === undefined) return new Uint8Array(this.grid.columns).fill(CODE.none);
    return this.#keep(row, () => {
      const { grid, scale } = this;
      const codes = new Uint8Array(grid.columns);
      for (let column = 0, at = row * grid.columns; column < codes.length; column++, at++) {
        if (grid.flags[at] !== FLAG.none) codes[column] = scale.code(grid.values[at], grid.flags[at]);
        else {
          const { value, flag } = grid.cell(row, column);
          codes[column] = scale.code(value, flag);
        }
      }
      return codes;
    });
  }

  /** Codes of a group: at each column the worst of its rows, or their median; `rows` is a function, asked once. */
  group(key, rows, mode) {
    return this.#keep(`${mode} ${key}`, () => (mode === "worst" ? this.worst(rows()) : this.#median(rows())));
  }

  #keep(key, make) {
    let codes = this.kept.get(key);
    if (!codes) this.kept.set(key, (codes = make()));
    return codes;
  }

  /** How much a code at a column deserves to be seen. */
  badness(code, column) {
    if (!this.scale.relative || code >= CODES) return this.scale.badness[code];
    this.usual ??= this.#median(sampleOf(this.grid.rows.length));
    // All layers get smaller gradients as training goes on: what is odd is odd among its neighbours, not among the steps.
    return 1 + Math.abs(code - this.usual[column]) / CODES;
  }

  /** At each column the code of the row that is worst, (columns,). */
  worst(rows) {
    const worst = new Uint8Array(this.grid.columns).fill(CODE.none);
    const most = new Float32Array(this.grid.columns);
    for (const row of rows) {
      const codes = this.row(row);
      for (let column = 0; column < worst.length; column++) {
        const badness = this.badness(codes[column], column);
        if (badness > most[column]) [worst[column], most[column]] = [codes[column], badness];
      }
    }
    return worst;
  }

  #median(rows) {
    const all = rows.map((row) => this.row(row));
    const median = new Uint8Array(this.grid.columns).fill(CODE.none);
    // Zero is less than every other value; codes of infinity and NaN are above them as they are.
    const order = [CODE.zero, ...Array(CODE.zero).keys()];
    const counts = new Uint32Array(256);
    for (let column = 0; column < median.length; column++) {
      counts.fill(0);
      for (const row of all) counts[row[column]]++;
      let before = (all.length - counts[CODE.none]) / 2;
      if (before > 0) median[column] = order.find((code) => (before -= counts[code]) <= 0);
    }
    return median;
  }
}
