// What is shown: made of the state and of what the source has answered.
import { Steps } from "./axis.js";
import { shown } from "./dom.js";
import { cellText } from "./format.js";
import { Grid, difference, everRecorded } from "./grid.js";
import { marksOf } from "./markers.js";
import { readingOf } from "./reading.js";
import { Painter, Scale, kindOf } from "./scale.js";
import { Tree } from "./tree.js";

const KNOWN_OWNERS = new WeakMap();
const NOBODY = new Map();

/** Grids of one run, or of the difference of two, with the colours of their values. */
export async function painterOf(answers, { run, compare, statistic, scale, from, to, width, layer }) {
  const options = { from, to, width, layer };
  const own = new Grid(await answers.grid(run, statistic.id, options));
  if (!compare) return Object.assign(new Painter(own, scale ?? new Scale(kindOf(statistic), own, statistic)), { own, run });
  const other = new Grid(await answers.grid(compare, statistic.id, options));
  const both = difference(own, other, statistic.scale);
  return Object.assign(new Painter(both, scale ?? new Scale("difference", both, statistic)), { own, other, run, compare });
}

/** Keeps what is derived until what it is derived from has changed. */
class Memo {
  constructor() {
    this.kept = new Map();
  }

  /** @param inputs compared one by one, by identity */
  of(name, inputs, make) {
    const before = this.kept.get(name);
    if (before && before.inputs.length === inputs.length && before.inputs.every((input, at) => Object.is(input, inputs[at])))
      return before.value;
    const value = make();
    this.kept.set(name, { inputs, value });
    return value;
  }
}

/** Derives the model that the parts of the page draw. */
export class Modeller {
  constructor() {
    this.memo = new Memo();
    this.rowsKey = 0;
  }

  /**
   * @param state run, compare, statistic, layer, step, from, to
   * @param look query, aggregate, theme, ink, cursor, toggled (group path → open), opened (layer names)
   * @param answers Answers
   */
  model(state, look, answers) {
    const { memo } = this;
    const layout = answers.get("layout");
    const incidents = answers.get("incidents");
    const base = answers.get("base");
    const model = { ...state, ...look, run: state.run, layout, incidents, loss: answers.get("loss"), table: answers.get("table") };
    model.records = layout?.records ?? 0;
    // Until somebody chooses, the layer that is looked at is the one that is worst.
    model.layer = layerOf(state, layout, incidents);
    model.first = layout?.firstStep ?? 0;
    model.last = layout?.lastStep ?? 0;
    // What only full records show is seen a cadence apart.
    model.slack = Math.max(10, layout?.full ?? 0);
    model.from = Math.max(model.first, state.from ?? model.first);
    model.to = Math.min(model.last, state.to ?? model.last);
    if (model.to < model.from) [model.from, model.to] = [model.first, model.last];
    model.step = Math.min(model.last, Math.max(model.first, state.step ?? model.last));
    model.chosen = statisticOf(layout, state.statistic);
    // What is said of a picture has to be true of it while the next one is on its way, and where that one cannot be had.
    model.statistic = base?.scale.statistic ?? model.chosen;
    model.stepsOver = (width) => new Steps(model.from, model.to, width);
    model.shortName = (name) => shown(name.split(".").slice(-2).join("."));
    model.series = answers.get("series")?.name === model.layer ? answers.get("series") : null;
    model.flow = answers.get("flow");
    const owners = ownersOf(layout);
    model.layerOf = (name) => owners.get(name) ?? null;
    model.marks = memo.of("marks", [incidents, owners], () => marksOf(incidents ?? [], model.layerOf));
    if (layout && base) this.#rows(model, base, answers);
    return model;
  }

  #rows(model, base, answers) {
    const { memo } = this;
    const { layout, marks, query } = model;
    const layers = memo.of("layers", [layout, base, marks], () => {
      const found = new Set(marks.map((mark) => mark.layer));
      return layout.layers.filter(({ name }) => found.has(name) || everRecorded(base.own, name));
    });
    const tree = memo.of("tree", [layers], () => new Tree(layers));
    const atFirst = memo.of("open", [tree], () => tree.openAtFirst());
    model.tree = tree;
    model.leafOf = (name) =>
      memo.of("leaves", [layers], () => new Map(layers.map((layer, at) => [layer.name, at]))).get(name) ?? -1;
    const parameters = Boolean(model.statistic.parameters);
    [model.rows, model.rowsKey] = memo.of("rows", [tree, query, parameters, model.version], () => {
      const open = new Set(tree.groups.map(({ path }) => path).filter((path) => model.toggled.get(path) ?? atFirst.has(path)));
      const rows = query ? tree.found(query, model.opened, parameters) : tree.rows(open, model.opened, parameters);
      return [rows, ++this.rowsKey];
    });
    // Whatever arrives of them has to be drawn.
    model.parameters = [...model.opened].map((name) => answers.get(`parameters ${name}`));
    const detail = answers.get("detail");
    model.painter = detail && covers(detail, model) && detail.scale === base.scale ? detail : base;
    this.#cells(model, answers);
    this.#severities(model);
  }

  #cells(model, answers) {
    const { layers } = model.tree;
    model.gridRow = (leaf) => model.painter.grid.index.get(layers[leaf].name);
    const painterFor = (row) => {
      if (row.kind !== "parameter") return model.painter;
      const painter = answers.get(`parameters ${layers[row.layer].name}`);
      // Colours of a scale that is no longer shown would be wrong ones.
      return painter?.scale === model.painter.scale ? painter : null;
    };
    model.codes = (row) => {
      const painter = painterFor(row);
      if (!painter) return null;
      if (row.kind !== "group") return { grid: painter.grid, codes: painter.row(painter.grid.index.get(row.name)) };
      const rows = () => row.leaves.map(model.gridRow).filter((at) => at !== undefined);
      return { grid: painter.grid, codes: painter.group(`${row.key} ${model.tree.layers.length}`, rows, model.aggregate) };
    };
    model.reading = (row, step) => {
      const painter = painterFor(row);
      if (!painter) return { value: "loading", notes: [], recorded: null, held: false };
      const names = row.kind === "group" ? row.leaves.map((leaf) => layers[leaf].name) : [row.name];
      const reading = readingOf(painter, names, row, step, model.aggregate);
      if (painter.other && row.kind !== "group") {
        for (const [run, grid] of [
          [painter.run, painter.own],
          [painter.compare, painter.other],
        ]) {
          const cell = grid.cell(grid.index.get(row.name), grid.column(step));
          reading.notes.push(`${run}: ${cellText(cell.value, cell.flag, model.statistic.scale, 6)}`);
        }
      }
      return reading;
    };
    model.typeOf = (row) => (row.kind === "parameter" ? "parameter" : (layers[row.layer]?.type ?? ""));
  }

  #severities(model) {
    const { memo } = this;
    const worst = memo.of("severities", [model.marks], () => {
      const found = new Map();
      for (const { layer, finding } of model.marks)
        if (finding.severity === "critical" || !found.has(layer)) found.set(layer, finding.severity);
      return found;
    });
    const ofRow = memo.of("row severities", [worst, model.tree], () => new Map());
    model.severity = (row) => {
      if (!worst.size || row.kind === "parameter") return null;
      if (!ofRow.has(row.key)) {
        const found = row.leaves.map((leaf) => worst.get(model.tree.layers[leaf].name)).filter(Boolean);
        ofRow.set(row.key, found.includes("critical") ? "critical" : (found[0] ?? null));
      }
      return ofRow.get(row.key);
    };
  }
}

/** The statistic of a layout by its id; the first one where there is none of that id. */
export function statisticOf(layout, id) {
  return layout?.statistics.find((statistic) => statistic.id === id) ?? layout?.statistics[0];
}

/** The layer of a state; where nobody has chosen one, or it is gone, that of the first critical incident, else of the first. */
export function layerOf(state, layout, incidents) {
  const owners = ownersOf(layout);
  if (owners.has(state.layer)) return owners.get(state.layer);
  if (!layout || !incidents) return undefined;
  const causes = incidents.map(({ cause }) => cause).filter(({ layer }) => owners.has(layer));
  const worst = causes.find(({ severity }) => severity === "critical") ?? causes[0];
  return worst ? owners.get(worst.layer) : layout.layers.find(({ parameters }) => parameters.length)?.name;
}

/** A finding's layer or parameter → the layer whose row it belongs to. */
function ownersOf(layout) {
  if (!layout) return NOBODY;
  if (KNOWN_OWNERS.has(layout)) return KNOWN_OWNERS.get(layout);
  const owners = new Map();
  for (const layer of layout.layers) for (const name of layer.parameters) owners.set(name, layer.name);
  for (const layer of layout.layers) owners.set(layer.name, layer.name);
  KNOWN_OWNERS.set(layout, owners);
  return owners;
}

function covers({ range }, { from, to }) {
  return range.from <= from && range.to >= to;
}
