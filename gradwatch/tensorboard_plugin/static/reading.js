// The exact numbers behind a cell.
import { FLAG, cellText, number, plural } from "./format.js";
import { quantile } from "./grid.js";

/** The exact numbers of a row at a step. */
export function readingOf(painter, names, row, step, mode) {
  const { grid, scale } = painter;
  const column = grid.column(step);
  const cells = names.map((name) => ({ name, ...grid.cell(grid.index.get(name), column) }));
  const known = cells.filter((cell) => cell.flag !== FLAG.none);
  const kind = scale.statistic.scale;
  const text = (cell) => (scale.kind === "difference" ? differenceText(cell, kind) : cellText(cell.value, cell.flag, kind, 6));
  if (!known.length) return { value: "not recorded", notes: [], recorded: null, held: false };
  const recordedAt = (cell) => ({ first: grid.steps[cell.column], last: grid.last[cell.column] });
  if (row.kind !== "group") {
    const recorded = recordedAt(known[0]);
    return { value: text(known[0]), notes: [], recorded, held: step > recorded.last };
  }
  const badness = (cell) => painter.badness(scale.code(cell.value, cell.flag), column);
  const worst = known.reduce((a, b) => (badness(b) > badness(a) ? b : a));
  const values = Float64Array.from(
    known.filter((cell) => cell.flag === FLAG.value || cell.flag === FLAG.zero),
    (cell) => (cell.flag === FLAG.zero ? 0 : cell.value),
  ).sort();
  const middle = { value: quantile(values, 0.5), flag: values.length ? FLAG.value : FLAG.nan };
  const recorded = recordedAt(worst);
  const notes = [`worst of ${plural(known.length, "layer")}: ${worst.name}, ${text(worst)}`];
  if (values.length)
    notes.push(
      `median ${text(middle)}, from ${text({ ...middle, value: values[0] })} to ${text({ ...middle, value: values.at(-1) })}`,
    );
  return { value: text(mode === "worst" ? worst : middle), notes, recorded, held: step > recorded.last };
}

function differenceText(cell, kind) {
  if (cell.flag === FLAG.zero) return "zero in one of the runs";
  if (cell.flag !== FLAG.value) return cellText(cell.value, cell.flag, kind);
  if (kind === "share") return `${cell.value > 0 ? "+" : ""}${number(cell.value * 100, 4)} percentage points`;
  if (kind !== "log") return `${cell.value > 0 ? "+" : ""}${number(cell.value, 6)}`;
  return `${cell.value > 0 ? "+" : ""}${number(cell.value, 4)} decades (×${number(10 ** cell.value, 3)})`;
}
