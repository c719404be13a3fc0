// A statistic over rows and steps: which value stands at a step.
import { FLAG } from "./format.js";

// Gaps that have to be seen of a row before they are taken for its rhythm.
const RHYTHM = 3;

/** The share `q` of sorted values lies below the result. */
export function quantile(sorted, q) {
  if (!sorted.length) return NaN;
  const place = (sorted.length - 1) * q;
  const at = Math.floor(place);
  const next = Math.min(at + 1, sorted.length - 1);
  return sorted[at] + (place - at) * (sorted[next] - sorted[at]);
}

function usualGap(gaps) {
  const sorted = Float64Array.from(gaps.filter((gap) => gap > 0)).sort();
  return sorted.length ? Math.max(1, sorted[Math.floor((sorted.length - 1) * 0.75)]) : 1;
}

/** Values of rows at steps, as a source gave them. */
export class Grid {
  constructor({ rows, steps, last, values, flags }) {
    this.rows = rows;
    this.steps = steps;
    this.last = last;
    this.values = values;
    this.flags = flags;
    this.columns = steps.length;
    this.index = new Map(rows.map((name, index) => [name, index]));
    // What only every tenth record shows is taken to last until the next one; a longer silence is a silence.
    this.gap = usualGap(Array.from({ length: Math.max(0, this.columns - 1) }, (_, at) => steps[at + 1] - last[at]));
    this.gaps = new Map();
    // Whether a column stands for several records.
    this.pooled = steps.some((step, column) => last[column] > step);
  }

  /** The step before which a column ends. */
  end(column) {
    const longest = this.last[column] + this.gap;
    return column + 1 < this.columns ? Math.min(this.steps[column + 1], longest) : longest;
  }

  /** The column that stands for a step; −1 where none does. */
  column(step) {
    let [low, high] = [0, this.columns];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.steps[middle] <= step) low = middle + 1;
      else high = middle;
    }
    return low && step < this.end(low - 1) ? low - 1 : -1;
  }

  /** How long a row's value is taken to last: of optimizers that take turns, each is silent while the other steps. */
  rowGap(row) {
    if (!this.gaps.has(row)) {
      const gaps = [];
      let before = -1;
      for (let column = 0, at = row * this.columns; column < this.columns; column++, at++) {
        if (this.flags[at] === FLAG.none) continue;
        if (before >= 0) gaps.push(this.steps[column] - this.last[before]);
        before = column;
      }
      this.gaps.set(row, gaps.length < RHYTHM ? this.gap : usualGap(gaps));
    }
    return this.gaps.get(row);
  }

  /** The column whose value stands at `column` for a row: itself, or an earlier one that lasts; −1 where there is none. */
  holding(row, column) {
    const recorded = (at) => this.flags[row * this.columns + at] !== FLAG.none;
    if (recorded(column)) return column;
    const gap = this.rowGap(row);
    for (let at = column - 1; at >= 0 && this.steps[column] - this.last[at] < gap; at--) if (recorded(at)) return at;
    return -1;
  }

  /** {value, flag, column} of a row at a column; the column is the one in which the value was recorded. */
  cell(row, column) {
    const at = row === undefined || column < 0 ? -1 : this.holding(row, column);
    if (at < 0) return { value: NaN, flag: FLAG.none, column: -1 };
    const place = row * this.columns + at;
    return { value: this.values[place], flag: this.flags[place], column: at };
  }
}

/** Whether any cell of a row was recorded. */
export function everRecorded(grid, name) {
  const row = grid.index.get(name);
  if (row === undefined) return false;
  return grid.flags.subarray(row * grid.columns, (row + 1) * grid.columns).some((flag) => flag !== FLAG.none);
}

/** One run beside another, row by name and column by step: in decades where the statistic has a logarithmic scale. */
export function difference(one, other, scale) {
  const size = one.rows.length * one.columns;
  const [values, flags] = [new Float32Array(size), new Uint8Array(size).fill(FLAG.none)];
  const columns = Array.from(one.steps, (step) => other.column(step));
  one.rows.forEach((name, row) => {
    const theirs = other.index.get(name);
    if (theirs === undefined) return;
    for (let column = 0; column < one.columns; column++) {
      const [a, b] = [one.cell(row, column), other.cell(theirs, columns[column])];
      const at = row * one.columns + column;
      flags[at] = differenceFlag(a.flag, b.flag, scale);
      if (flags[at] !== FLAG.value) continue;
      if (scale !== "log") values[at] = (a.flag === FLAG.zero ? 0 : a.value) - (b.flag === FLAG.zero ? 0 : b.value);
      else if (a.flag !== FLAG.zero) values[at] = Math.log10(a.value) - Math.log10(b.value);
    }
  });
  return new Grid({ rows: one.rows, steps: one.steps, last: one.last, values, flags });
}

function differenceFlag(a, b, scale) {
  for (const flag of [FLAG.none, FLAG.nan]) if (a === flag || b === flag) return flag;
  if ([a, b].some((flag) => flag === FLAG.inf || flag === FLAG.negativeInf)) return FLAG.inf;
  // Zero in both runs is no difference; in one of them it is infinitely many decades.
  return scale === "log" && (a === FLAG.zero) !== (b === FLAG.zero) ? FLAG.zero : FLAG.value;
}
