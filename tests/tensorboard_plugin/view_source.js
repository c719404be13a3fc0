// A source and a host for the tests: answers from what the test has put into `window.runs`, and notes what it was told.
import { mount } from "./view.js";

const FLAGS = { "–": 1, NaN: 2, Infinity: 3, "-Infinity": 5 };

function cell(value) {
  if (value === 0) return [0, 4];
  return typeof value === "string" ? [0, FLAGS[value]] : [value, 0];
}

/** Values of many layers and steps, too many to be sent: a size that falls from layer to layer. */
function generated({ layers, steps }) {
  return Array.from({ length: layers }, (_, row) =>
    Array.from({ length: steps }, (_, step) => 10 ** -(1 + (row % 10) / 2 + step / steps)),
  );
}

function gridOf(run, id, { from, to, width, layer }) {
  const { statistics, layers } = run.layout;
  const statistic = statistics.find((one) => one.id === id);
  const recorded = run.generate
    ? { steps: Array.from({ length: run.generate.steps }, (_, step) => step), values: (run.kept ??= generated(run.generate)) }
    : run.values[id];
  const inside = recorded.steps.map((step, at) => at).filter((at) => recorded.steps[at] >= from && recorded.steps[at] <= to);
  const each = Math.max(1, Math.ceil(inside.length / width));
  const columns = Math.ceil(inside.length / each);
  const rows = layer ? layers.find(({ name }) => name === layer).parameters : layers.map(({ name }) => name);
  const grid = {
    rows,
    steps: new Float64Array(columns),
    last: new Float64Array(columns),
    values: new Float32Array(rows.length * columns),
    flags: new Uint8Array(rows.length * columns),
  };
  for (let column = 0; column < columns; column++) {
    grid.steps[column] = recorded.steps[inside[column * each]];
    grid.last[column] = recorded.steps[inside[Math.min(inside.length, (column + 1) * each) - 1]];
    rows.forEach((name, row) => {
      const values = layer ? run.parameters[name] : recorded.values[row];
      [grid.values[row * columns + column], grid.flags[row * columns + column]] = cell(values[inside[column * each]]);
    });
  }
  return { ...grid, statistic: statistic.id };
}

function curve(steps, values) {
  const kept = steps.map((step, at) => [step, ...cell(values[at])]).filter(([, , flag]) => flag !== 1);
  return {
    steps: kept.map(([step]) => step),
    values: kept.map(([, value, flag]) => (flag > 1 && flag !== 4 ? null : value)),
    flags: kept.map(([, , flag]) => flag),
  };
}

function seriesOf(run, layer) {
  const row = run.layout.layers.findIndex(({ name }) => name === layer);
  const curves = run.generate
    ? []
    : run.layout.statistics.map((one) => {
        const name = one.parameters ? run.layout.layers[row].weight : layer;
        return {
          id: one.id,
          title: one.title,
          tensor: one.tensor,
          name,
          statistic: one.statistic,
          unit: one.unit,
          scale: one.scale,
          ...curve(run.values[one.id].steps, run.values[one.id].values[row]),
        };
      });
  return { name: layer, type: run.layout.layers[row].type, series: curves, latest: {}, histograms: run.histograms ?? [] };
}

const answers = {
  layout: (run) => run.layout,
  grid: gridOf,
  series: seriesOf,
  table: (run) => ({ rows: run.table }),
  incidents: (run) => run.incidents,
  loss: (run) => ({ ...curve(run.loss.steps, run.loss.values), skipped: [] }),
};

window.asked = [];
window.states = [];
window.failing = {};
window.news = new Set();

function checked(name, answer) {
  return async (...args) => {
    window.asked.push([name, ...args]);
    if (window.failing[name]) throw new Error(window.failing[name]);
    return answer(...args);
  };
}

/** Mounts the view over `window.runs`. */
window.show = async ({ theme = "light", state = null }) => {
  const source = {
    runs: checked("runs", () => window.runs.map(({ name, layout }) => ({ name, lastStep: layout.lastStep, wallTime: 0 }))),
  };
  for (const [name, answer] of Object.entries(answers)) {
    source[name] = checked(name, (run, ...rest) =>
      answer(
        window.runs.find((one) => one.name === run),
        ...rest,
      ),
    );
  }
  source.subscribe = (listener) => {
    window.news.add(listener);
    return () => window.news.delete(listener);
  };
  const themes = new Set();
  window.setTheme = (name) => themes.forEach((listener) => listener(name));
  const host = {
    theme: () => theme,
    onTheme: (listener) => {
      themes.add(listener);
      return () => themes.delete(listener);
    },
    getState: () => state,
    setState: (given) => window.states.push(given),
    shareUrl: (given) => `https://example.org/#${new URLSearchParams(given)}`,
    emptyHint: "Then wait for the next reload.",
  };
  const root = document.querySelector("#root");
  window.view = mount(root, source, { host });
  await root.gradwatch.ready;
};
