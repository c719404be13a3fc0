// One layer over the steps: what comes forward, what comes back, and what reaches its parameters.
import { Axis, drawLine } from "./chart.js";
import { lineColors } from "./colors.js";
import { drawDistribution, most } from "./distribution.js";
import { context, el, put, shown } from "./dom.js";
import { FLAG, cellText, span } from "./format.js";
import { badge } from "./markers.js";

const HEIGHT = 92;
const HEIGHT_OF_HISTOGRAM = 64;
const LEFT = 52;

// `telling`: lines that were zero throughout are left out.
const PANELS = [
  { title: "Activation, rms", kind: "log", of: (one) => one.tensor === "activation" && one.statistic === "rms" },
  { title: "Gradients, rms", kind: "log", of: (one) => one.tensor.endsWith("_grad") && one.statistic === "rms" },
  { title: "Ratios", kind: "log", of: (one) => one.unit === "1" && one.scale === "log" && one.statistic !== "stale" },
  {
    title: "Weights and updates, rms",
    kind: "log",
    of: (one) => !one.tensor.endsWith("_grad") && one.tensor !== "activation" && one.statistic === "rms",
  },
  { title: "Shares", kind: "share", telling: true, of: (one) => one.scale === "share" },
  { title: "Left over from the step before", kind: "log", telling: true, of: (one) => one.statistic === "stale" },
  { title: "NaN and infinite elements", kind: "log", telling: true, of: (one) => one.statistic === "nonfinite" },
];

const LABELS = { activation: "activation", activation_grad: "dL/da", input_grad: "dL/dz", parameter: "", update: "update of" };

/** What a line is called beside the others of its layer. */
function label(one, layer) {
  const parameter = one.name?.startsWith(`${layer}.`) ? one.name.slice(layer.length + 1) : one.name;
  if (one.tensor === "parameter_grad" && one.statistic === "rms") return `dL/d ${parameter}`;
  const what = one.statistic === "rms" ? (LABELS[one.tensor] ?? one.tensor) : (one.id ?? one.statistic).replaceAll("_", " ");
  return one.name && one.name !== layer ? `${what} ${parameter}`.trim() : what;
}

/** The title of a histogram. */
function distributed(one, layer) {
  return `Magnitudes in ${label({ ...one, statistic: "rms" }, layer)}`;
}

function brightest(one) {
  return `bright is up to ${Math.round(100 * most(one))} % of the elements that are not zero`;
}

export class Series {
  constructor(app) {
    this.app = app;
    this.element = el("div", { class: "gw-series", test: "gw-series", role: "group" });
    this.panels = [];
  }

  render(model) {
    this.model = model;
    const { series } = model;
    if (this.series !== series) this.#build(series);
    const width = this.element.clientWidth;
    if (!(width > 0)) return;
    this.panels.forEach((panel, index) => this.#draw(panel, width, index === this.panels.length - 1));
  }

  #build(series) {
    this.series = series;
    this.panels = [];
    if (!series) {
      this.element.replaceChildren(
        el("p", { class: "gw-hint", text: "Click a row, an incident or a point of the flow to see a layer over the steps." }),
      );
      return;
    }
    for (const kind of PANELS) {
      const lines = series.series.filter((one) => kind.of(one) && one.flags.some((flag) => flag !== FLAG.none));
      const told = kind.telling ? lines.filter((one) => one.values.some((value) => value > 0)) : lines;
      if (!told.length) continue;
      const swatches = told.map(() => el("i", { class: "gw-swatch" }));
      const values = told.map(() => el("b"));
      const chip = (one, at) =>
        el("span", { class: "gw-chip" }, swatches[at], el("span", { text: `${label(one, series.name)} ` }), values[at]);
      const chips = el("span", { class: "gw-chips" }, ...told.map(chip));
      this.panels.push({ ...kind, lines: told, canvas: this.#canvas(), chips, swatches, values });
    }
    for (const one of series.histograms ?? []) {
      const chips = el("span", { class: "gw-chips" }, el("span", { class: "gw-chip", text: brightest(one) }));
      this.panels.push({ title: distributed(one, series.name), histogram: one, canvas: this.#canvas(), chips });
    }
    const blocks = this.panels.map((panel) =>
      el(
        "div",
        { class: "gw-panel" },
        el("div", { class: "gw-panel-head" }, el("h3", { text: panel.title }), panel.chips),
        panel.canvas,
      ),
    );
    const empty = el("p", { class: "gw-hint", text: "Nothing was recorded of this layer." });
    this.element.replaceChildren(...(blocks.length ? blocks : [empty]));
  }

  #canvas() {
    const on = { pointermove: (event) => this.#hover(event), pointerdown: (event) => this.#pick(event) };
    return el("canvas", { class: "gw-chart", role: "img", on });
  }

  #draw(panel, width, last) {
    const { model } = this;
    const { ink, theme } = model;
    const body = panel.histogram ? HEIGHT_OF_HISTOGRAM : HEIGHT;
    const ctx = context(panel.canvas, width, body + (last ? 20 : 0));
    const steps = model.stepsOver(width - LEFT - 8);
    ctx.font = `11px ${ink.font}`;
    if (last) steps.draw(ctx, LEFT, body, ink);
    if (panel.histogram) drawDistribution(ctx, panel.histogram, steps, { left: LEFT, right: width - 8, bottom: body - 2 }, model);
    else this.#drawLines(ctx, panel, steps, width);
    if (panel === this.panels[0]) this.#marks(ctx, steps);
    if (model.step >= steps.from && model.step <= steps.to) {
      ctx.fillStyle = ink.accent;
      ctx.fillRect(LEFT + steps.center(model.step) - 0.75, 0, 1.5, body);
    }
    const figures = [...panel.chips.children].map((chip) => chip.textContent).join(", ");
    const said = `${panel.title} of ${shown(model.layer)} over ${span(steps.from, steps.to)}: ${figures}`;
    panel.canvas.setAttribute("aria-label", said);
    this.steps = steps;
  }

  #drawLines(ctx, panel, steps, width) {
    const { model } = this;
    const { ink, theme } = model;
    const seen = panel.lines.map((one) => within(one, steps));
    const finite = seen.flatMap((points) => points.filter(({ flag }) => flag === FLAG.value).map(({ value }) => value));
    const axis = new Axis(panel.kind, finite, 0, HEIGHT - 2);
    axis.draw(ctx, LEFT, width - 8, ink);
    const colors = lineColors(theme);
    seen.forEach((points, index) => {
      const drawn = points.map(({ step, value, flag }) => ({
        x: LEFT + steps.center(step),
        y: axis.y(value, flag),
        flag: panel.kind !== "log" && flag === FLAG.zero ? FLAG.value : flag,
      }));
      drawLine(ctx, drawn, colors[index % colors.length], theme, { dots: points.length <= 40 });
    });
    panel.lines.forEach((one, index) => {
      const at = newest(one, model.step);
      panel.swatches[index].style.background = colors[index % colors.length];
      put(panel.values[index], at < 0 ? "–" : cellText(one.values[at] ?? NaN, one.flags[at], one.scale));
    });
  }

  #marks(ctx, steps) {
    for (const mark of this.model.marks) {
      const { first_step: first } = mark.finding;
      if (mark.layer !== this.model.layer || first < steps.from || first > steps.to) continue;
      badge(ctx, Math.max(LEFT + 8, LEFT + steps.center(first)), 9, mark, 7);
    }
  }

  #hover(event) {
    if (event.buttons & 1) this.#pick(event);
  }

  #pick(event) {
    event.target.setPointerCapture?.(event.pointerId);
    this.app.scrub(this.steps.step(event.offsetX - LEFT));
  }
}

function within(one, steps) {
  const points = [];
  for (let at = 0; at < one.steps.length; at++) {
    // One beyond each end, so that lines run out of the picture.
    if ((one.steps[at + 1] ?? Infinity) < steps.from || (one.steps[at - 1] ?? -Infinity) > steps.to) continue;
    if (one.flags[at] === FLAG.none) continue;
    points.push({ step: one.steps[at], value: one.values[at] ?? NaN, flag: one.flags[at] });
  }
  return points;
}

function newest(one, step) {
  for (let at = one.steps.length - 1; at >= 0; at--) if (one.steps[at] <= step && one.flags[at] !== FLAG.none) return at;
  return -1;
}
