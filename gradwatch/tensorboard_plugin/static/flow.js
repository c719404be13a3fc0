// Gradient flow: the profile over depth at one step, with a band of the steps before it.
import { Axis, drawLine } from "./chart.js";
import { css, lineColors, specialColors } from "./colors.js";
import { context, el, fitted } from "./dom.js";
import { FLAG, cellText, span } from "./format.js";
import { everRecorded, quantile } from "./grid.js";

const EARLIER = 64;
const WORK = 60000;
const LEFT = 52;
const DOTS_UP_TO = 60;

/** The tenth and the ninetieth percentile of each row over columns before one, and their median: (rows,) each, NaN without any. */
function band(grid, rows, column) {
  // Dragging has to stay smooth: of thousands of layers fewer steps make the band.
  const stride = Math.max(1, Math.ceil(column / Math.min(EARLIER, Math.max(16, WORK / rows.length))));
  const columns = [];
  for (let at = column - 1; at >= 0; at -= stride) columns.push(at);
  const [low, high] = [new Float64Array(rows.length), new Float64Array(rows.length)];
  const values = new Float32Array(columns.length);
  rows.forEach((row, index) => {
    let known = 0;
    for (const at of columns) {
      const place = row * grid.columns + at;
      if (grid.flags[place] === FLAG.value) values[known++] = grid.values[place];
    }
    const sorted = values.subarray(0, known).sort();
    [low[index], high[index]] = [quantile(sorted, 0.1), quantile(sorted, 0.9)];
  });
  return { low, high };
}

export class Flow {
  constructor(app) {
    this.app = app;
    this.canvas = el("canvas", {
      class: "gw-chart",
      test: "gw-flow",
      tabindex: "0",
      role: "application",
      "aria-roledescription": "chart",
    });
    this.legend = el("div", { class: "gw-chips" });
    this.space = el("div", { class: "gw-flow-space" }, this.canvas);
    this.element = el("div", { class: "gw-flow" }, this.legend, this.space);
    this.canvas.addEventListener("pointermove", (event) => this.#hover(event));
    this.canvas.addEventListener("pointerleave", () => app.tooltip.hide());
    this.canvas.addEventListener("click", (event) => {
      const at = this.#at(event);
      if (at >= 0) app.select(this.names[at]);
    });
    this.canvas.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move || !this.names?.length) return;
      event.preventDefault();
      const at = this.names.indexOf(this.model.layer);
      app.select(this.names[Math.min(this.names.length - 1, Math.max(0, at + move))]);
    });
  }

  render(model) {
    this.model = model;
    const { flow } = model;
    const { clientWidth: width, clientHeight: height } = this.space;
    if (!flow || !(width > 0)) return;
    if (this.flow !== flow) {
      this.flow = flow;
      this.names = flow.grid.rows.filter((name) => everRecorded(flow.grid, name));
      this.rows = this.names.map((name) => flow.grid.index.get(name));
      this.sample = [flow.grid, flow.other].filter(Boolean).flatMap(usual);
      this.column = -1;
    }
    const column = flow.grid.column(model.step);
    if (this.column !== column) {
      this.band = band(flow.grid, this.rows, Math.max(0, column));
      this.column = column;
    }
    this.#draw(width, height, column);
  }

  #draw(width, height, column) {
    const { model, canvas } = this;
    const { flow, ink, theme } = model;
    const ctx = context(canvas, width, height);
    ctx.font = `11px ${ink.font}`;
    const [own, other] = lineColors(theme);
    const [right, bottom] = [width - 8, height - 34];
    this.axis = new Axis(flow.statistic.scale, this.sample, 0, bottom);
    this.axis.draw(ctx, LEFT, right, ink);
    this.slot = (right - LEFT) / Math.max(1, this.names.length);
    const x = (index) => LEFT + (index + 0.5) * this.slot;
    const chosen = this.names.indexOf(model.layer);
    if (chosen >= 0) {
      ctx.fillStyle = ink.chosen;
      ctx.fillRect(x(chosen) - Math.max(1.5, this.slot / 2), 0, Math.max(3, this.slot), bottom);
    }
    this.#band(ctx, x, ink);
    const line = (grid, at) =>
      this.names.map((name, index) => {
        const { value, flag } = grid.cell(grid.index.get(name), at);
        return {
          x: x(index),
          y: this.axis.y(value, flag),
          flag: this.axis.kind !== "log" && flag === FLAG.zero ? FLAG.value : flag,
        };
      });
    const dots = this.names.length <= DOTS_UP_TO;
    const thin = this.slot > 2 ? 2 : 1;
    if (flow.other)
      drawLine(ctx, line(flow.other, flow.other.column(model.step)), other, theme, { dots, width: thin * 0.9, dash: [5, 3] });
    drawLine(ctx, line(flow.grid, column), own, theme, { dots, width: thin });
    this.#names(ctx, x, bottom, ink, chosen);
    this.#explain(own, other, column, line(flow.grid, column));
  }

  #band(ctx, x, ink) {
    const { low, high } = this.band;
    ctx.fillStyle = ink.band;
    if (this.slot < 1) return this.#fineBand(ctx, x);
    for (let from = 0; from < low.length; from++) {
      if (Number.isNaN(low[from])) continue;
      let to = from;
      while (to + 1 < low.length && !Number.isNaN(low[to + 1])) to++;
      ctx.beginPath();
      // A layer alone between two without a band is drawn as wide as its slot.
      const edge = from === to ? Math.min(4, this.slot / 2) : 0;
      for (let at = from; at <= to; at++) ctx.lineTo(x(at) + (at === from ? -edge : edge), this.axis.y(high[at]));
      if (from === to) ctx.lineTo(x(to) + edge, this.axis.y(high[to]));
      for (let at = to; at >= from; at--) ctx.lineTo(x(at) + edge, this.axis.y(low[at]));
      if (from === to) ctx.lineTo(x(to) - edge, this.axis.y(low[to]));
      ctx.fill();
      from = to;
    }
  }

  /** The band of more layers than pixels: on each pixel from the lowest to the highest of its layers. */
  #fineBand(ctx, x) {
    const { low, high } = this.band;
    for (let from = 0; from < low.length;) {
      const pixel = Math.floor(x(from));
      let [least, most] = [Infinity, -Infinity];
      for (; from < low.length && Math.floor(x(from)) === pixel; from++) {
        if (low[from] < least) least = low[from];
        if (high[from] > most) most = high[from];
      }
      if (most >= least) ctx.fillRect(pixel, this.axis.y(most), 1, Math.max(1, this.axis.y(least) - this.axis.y(most)));
    }
  }

  #names(ctx, x, bottom, ink, chosen) {
    ctx.textBaseline = "top";
    ctx.textAlign = "center";
    const every = Math.max(1, Math.ceil(74 / this.slot));
    for (let at = 0; at < this.names.length; at += every) {
      ctx.fillStyle = at === chosen ? ink.text : ink.muted;
      const text = fitted(ctx, this.model.shortName(this.names[at]), this.slot * every - 10);
      const half = ctx.measureText(text).width / 2;
      ctx.fillText(text, Math.max(half, Math.min(x(at), this.canvas.clientWidth - half - 2)), bottom + 4);
    }
    ctx.textAlign = "left";
    ctx.fillStyle = ink.muted;
    ctx.fillText("input", LEFT, bottom + 19);
    ctx.textAlign = "right";
    ctx.fillText("output", this.canvas.clientWidth - 8, bottom + 19);
    ctx.textAlign = "center";
    ctx.fillText("depth: layers in forward order →", (LEFT + this.canvas.clientWidth) / 2, bottom + 19);
  }

  #explain(own, other, column, points) {
    const { model } = this;
    const { flow } = model;
    const chip = (color, text, kind = "") => {
      const swatch = el("i", { class: `gw-swatch ${kind}` });
      swatch.style.background = color;
      return el("span", { class: "gw-chip" }, swatch, el("span", { text }));
    };
    const step = column < 0 ? "nothing recorded" : span(flow.grid.steps[column], flow.grid.last[column]);
    const chips = [chip(own, flow.other ? `${flow.run}, ${step}` : step)];
    if (flow.other) chips.push(chip(other, flow.compare));
    chips.push(chip(model.ink.band, "10–90 % of the steps before", "gw-block"));
    const special = specialColors(model.theme);
    if (points.some(({ flag }) => flag === FLAG.nan)) chips.push(chip(css(special.nan), "NaN", "gw-round"));
    if (points.some(({ flag }) => flag === FLAG.inf)) chips.push(chip(css(special.inf), "infinite", "gw-round"));
    if (points.some(({ flag }) => flag === FLAG.zero)) chips.push(chip(css(special.zero), "exactly zero", "gw-round"));
    const said = chips.map((each) => each.outerHTML).join();
    if (said !== this.said) this.legend.replaceChildren(...chips);
    this.said = said;
    const at = this.names.indexOf(model.layer);
    const where = at >= 0 ? `; ${model.layer}: ${this.#text(at)}` : "";
    this.canvas.setAttribute(
      "aria-label",
      `${flow.statistic.title} over ${this.names.length} layers at ${step}${where}. Arrow keys choose a layer.`,
    );
  }

  #text(at) {
    const { flow } = this.model;
    const cell = flow.grid.cell(this.rows[at], this.column);
    return cellText(cell.value, cell.flag, flow.statistic.scale, 6);
  }

  #at(event) {
    const at = Math.floor((event.offsetX - LEFT) / this.slot);
    return at >= 0 && at < (this.names?.length ?? 0) ? at : -1;
  }

  #hover(event) {
    const at = this.#at(event);
    if (at < 0) return this.app.tooltip.hide();
    const { flow } = this.model;
    const { low, high } = this.band;
    const range = Number.isNaN(low[at])
      ? null
      : `before: ${cellText(low[at], 0, flow.statistic.scale)} to ${cellText(high[at], 0, flow.statistic.scale)}`;
    const theirs = flow.other?.cell(flow.other.index.get(this.names[at]), flow.other.column(this.model.step));
    return this.app.tooltip.show(
      event.clientX,
      event.clientY,
      el("div", { class: "gw-tip-name", text: this.names[at] }),
      el("div", { class: "gw-tip-value", text: this.#text(at) }),
      range && el("div", { class: "gw-tip-note", text: range }),
      theirs &&
        el("div", { class: "gw-tip-note", text: `${flow.compare}: ${cellText(theirs.value, theirs.flag, flow.statistic.scale)}` }),
    );
  }
}

/** The least and the greatest of a grid's values, but for a few: a single wild one must not flatten all others. */
function usual(grid) {
  const stride = Math.max(1, Math.floor(grid.values.length / 40000));
  const sample = [];
  for (let at = 0; at < grid.values.length; at += stride) if (grid.flags[at] === FLAG.value) sample.push(grid.values[at]);
  const sorted = Float64Array.from(sample).sort();
  return [quantile(sorted, 0.002), quantile(sorted, 0.998)].filter((value) => !Number.isNaN(value));
}
