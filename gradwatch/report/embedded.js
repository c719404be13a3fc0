// The page as a file: answers the view from what the file holds. In the file it follows the modules of the tab, in one script.
import { mount } from "./view.js";

// Codes of a packed grid, as in packing.py; the others stand for numbers.
const [NO_RECORD, EXACT_ZERO, FIRST_CODE, LAST_CODE, MINUS_INFINITE, INFINITE, NOT_A_NUMBER] = [0, 1, 2, 65532, 65533, 65534, 65535];
const FLAG_OF_CODE = new Map([[NO_RECORD, 1], [EXACT_ZERO, 4], [MINUS_INFINITE, 5], [INFINITE, 3], [NOT_A_NUMBER, 2]]);
const OF_NUMBER = 0;

/** Runs that are embedded in the document, unpacked when they are asked for. */
class EmbeddedSource {
  constructor(names, packed) {
    this.packed = new Map(names.map((name, index) => [name, packed[index]]));
    this.unpacked = new Map();
  }

  async runs() {
    return Promise.all([...this.packed.keys()].map(async (name) => ({ name, lastStep: (await this.layout(name)).lastStep })));
  }

  async layout(run) {
    return (await this.#run(run)).layout;
  }

  async table(run) {
    return (await this.#run(run)).table;
  }

  async incidents(run) {
    return (await this.#run(run)).incidents;
  }

  async loss(run) {
    return (await this.#run(run)).loss;
  }

  async grid(run, statistic, { from = -Infinity, to = Infinity, width = Infinity, layer } = {}) {
    const { layout, grids } = await this.#run(run);
    const grid = grids[statistic];
    if (!grid) throw new Error(`This run holds nothing of ${statistic}.`);
    if (layer === undefined) {
      return pooled(grid, layout.layers.map(({ name }) => name), grid.standIns, from, to, width);
    }
    const names = belowLayer(layout, statistic, layer);
    return pooled(grid, names, names.map((name) => grid.rows.indexOf(name)), from, to, width);
  }

  async series(run, layer) {
    const { layout, grids, table } = await this.#run(run);
    const { name, type } = layerNamed(layout, layer);
    const series = layout.statistics.flatMap((about) =>
      belowLayer(layout, about.id, layer).flatMap((row) => curveOf(grids[about.id], about, row)),
    );
    const latest = table.rows.find((row) => row.layer === layer).last;
    return { name, type, series, latest };
  }

  subscribe() {
    return () => {};
  }

  #run(name) {
    if (!this.unpacked.has(name)) this.unpacked.set(name, unpack(this.packed.get(name)));
    return this.unpacked.get(name);
  }
}

function layerNamed(layout, name) {
  const found = layout.layers.find((layer) => layer.name === name);
  if (!found) throw new Error(`The run has no layer ${name}.`);
  return found;
}

/** The rows below a layer: its parameters, or itself. */
function belowLayer(layout, statistic, layer) {
  const { parameters } = layout.statistics.find(({ id }) => id === statistic);
  const { name, parameters: own } = layerNamed(layout, layer);
  return parameters ? own : [name];
}

function curveOf(grid, about, name) {
  const row = grid.rows.indexOf(name);
  if (row < 0) return [];
  const one = pooled(grid, [name], [row], -Infinity, Infinity, Infinity);
  if (!one.columns) return [];
  const values = Array.from(one.values, (value, index) => (one.flags[index] === OF_NUMBER || one.flags[index] === 4 ? value : null));
  const { id, title, tensor, statistic, unit, scale } = about;
  return [{ id, title, tensor, name, statistic, unit, scale, steps: [...one.steps], values, flags: [...one.flags] }];
}

/** Some rows of a packed grid between two steps, in at most `width` columns; columns without a record are left out. */
function pooled(grid, names, places, from, to, width) {
  const columns = grid.steps.length;
  const inside = [];
  for (let column = 0; column < columns; column++) {
    if (grid.last[column] < from || grid.steps[column] > to) continue;
    if (places.some((row) => row >= 0 && grid.codes[row * columns + column] !== NO_RECORD)) inside.push(column);
  }
  const wide = Math.min(width, inside.length);
  const [steps, last] = [new Float64Array(wide), new Float64Array(wide)];
  const [values, flags] = [new Float32Array(names.length * wide), new Uint8Array(names.length * wide).fill(FLAG_OF_CODE.get(NO_RECORD))];
  for (let target = 0; target < wide; target++) {
    const begin = Math.ceil((target * inside.length) / wide);
    const end = Math.ceil(((target + 1) * inside.length) / wide);
    steps[target] = grid.steps[inside[begin]];
    last[target] = grid.last[inside[end - 1]];
    for (let row = 0; row < names.length; row++) {
      if (places[row] < 0) continue;
      let most = NO_RECORD;
      for (let index = begin; index < end; index++) most = grid.larger(most, grid.codes[places[row] * columns + inside[index]]);
      const flag = FLAG_OF_CODE.get(most) ?? OF_NUMBER;
      flags[row * wide + target] = flag;
      if (flag === OF_NUMBER) values[row * wide + target] = grid.number(most);
    }
  }
  return { rows: names, columns: wide, steps, last, values, flags };
}

/** What packing.pack() made of a run. */
async function unpack(text) {
  const zipped = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const stream = new Blob([zipped]).stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(stream).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const told = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const all = new Uint8Array(buffer, 4 + length);
  const total = all.length / 2;
  let start = 0;
  for (const { id, scale } of told.layout.statistics) {
    const grid = told.grids[id];
    const count = grid.rows.length * grid.steps.length;
    grid.codes = summed(all.subarray(start, start + count), all.subarray(total + start, total + start + count), grid.steps.length);
    start += count;
    const unit = (grid.high - grid.low) / (LAST_CODE - FIRST_CODE);
    const spaced = (code) => grid.low + (code - FIRST_CODE) * unit;
    grid.number = scale === "log" ? (code) => 2 ** spaced(code) : spaced;
    grid.larger = scale === "linear" ? (one, other) => (magnitude(one) >= magnitude(other) ? one : other) : Math.max;
    const magnitude = (code) => (code < FIRST_CODE ? code - FIRST_CODE : code > LAST_CODE ? Infinity : Math.abs(spaced(code)));
  }
  return told;
}

/** Low bytes, high bytes and differences along rows → codes. */
function summed(low, high, columns) {
  const codes = new Uint16Array(low.length);
  for (let index = 0; index < codes.length; index++) {
    const before = index % columns ? codes[index - 1] : 0;
    codes[index] = before + (low[index] | (high[index] << 8));
  }
  return codes;
}

/** The surroundings of a file: the system's theme, and the state in the address. */
function surroundingsOfFile() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => (dark.matches ? "dark" : "light");
  const shareUrl = (state) => {
    const url = new URL(location.href);
    url.hash = new URLSearchParams(Object.entries(state).filter(([, value]) => value !== undefined && value !== null)).toString();
    return url.href;
  };
  return {
    title: "Gradient health",
    theme,
    onTheme: (callback) => dark.addEventListener("change", () => callback(theme())),
    getState: () => location.hash.slice(1),
    setState: (state) => history.replaceState(null, "", shareUrl(state)),
    onState: (callback) => addEventListener("hashchange", () => callback(location.hash.slice(1))),
    shareUrl,
  };
}

function embedded() {
  const names = JSON.parse(atob(document.getElementById("names").textContent));
  return new EmbeddedSource(names, Array.from(document.querySelectorAll("script.run"), ({ textContent }) => textContent));
}

const root = document.querySelector("main");
const source = embedded();
mount(root, source, { host: surroundingsOfFile() });
Object.assign(root.gradwatch, { source });
