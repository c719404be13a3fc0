// What stands above and below the heat-map, over the same steps: the loss, the axis, and the step that is looked at.
import { context, el, iconButton, put } from "./dom.js";
import { Axis, drawLine } from "./chart.js";
import { FLAG, cellText, count } from "./format.js";
import { badge } from "./markers.js";

const LOSS_HEIGHT = 46;
const AXIS_HEIGHT = 22;
const PLAY_SECONDS = 8;

/** The loss over the steps, with a mark where the optimizer did not step. */
export class Loss {
  constructor() {
    const text = "Loss over the steps; a tick below marks a step that the optimizer did not take";
    this.canvas = el("canvas", { class: "gw-loss-canvas", test: "gw-loss", role: "img", "aria-label": text, title: text });
    this.value = el("span", { class: "gw-figure" });
    this.label = el("div", { class: "gw-gutter gw-loss-label" }, el("span", { class: "gw-muted", text: "loss" }), this.value);
    this.element = el("div", { class: "gw-track" }, this.label, this.canvas);
  }

  render(model, steps) {
    const { loss } = model;
    const told = Boolean(loss?.steps.length);
    const lossMarks = model.marks.filter((mark) => mark.finding.layer === "loss");
    this.element.hidden = !told && !lossMarks.length;
    const ctx = context(this.canvas, steps.width, LOSS_HEIGHT);
    if (!ctx || this.element.hidden) return;
    const finite = [];
    const points = [];
    for (let at = 0; at < (loss?.steps.length ?? 0); at++) {
      const [step, flag] = [loss.steps[at], loss.flags[at]];
      if (step < steps.from - 1 || step > steps.to + 1) continue;
      if (flag === FLAG.value) finite.push(loss.values[at]);
      points.push({ step, value: loss.values[at], flag: flag === FLAG.zero ? FLAG.value : flag });
    }
    const [low, high] = finite.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
    const axis = new Axis(low > 0 && high / low > 30 ? "log" : "linear", finite, 0, LOSS_HEIGHT - 2);
    const drawn = points.map(({ step, value, flag }) => ({ x: steps.center(step), y: axis.y(value, flag), flag }));
    drawLine(ctx, drawn, model.ink.text, model.theme, { width: 1.25 });
    ctx.fillStyle = model.ink.warning;
    for (const step of loss?.skipped ?? []) ctx.fillRect(steps.center(step) - 0.75, LOSS_HEIGHT - 6, 1.5, 6);
    for (const mark of lossMarks) {
      const { first_step: first } = mark.finding;
      if (first >= steps.from && first <= steps.to)
        badge(ctx, Math.min(steps.width - 9, Math.max(9, steps.center(first))), 10, mark, 7);
    }
    ctx.fillStyle = model.ink.accent;
    ctx.fillRect(steps.center(model.step) - 0.75, 0, 1.5, LOSS_HEIGHT);
    const near = nearest(loss?.steps ?? [], model.step);
    put(this.value, near >= 0 ? cellText(loss.values[near], loss.flags[near], "linear", 4) : "not told");
  }
}

function nearest(steps, step) {
  let [low, high] = [0, steps.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** The numbers of the axis. */
export class StepAxis {
  constructor() {
    this.canvas = el("canvas", { class: "gw-axis-canvas", "aria-hidden": "true" });
    this.element = el(
      "div",
      { class: "gw-track" },
      el("div", { class: "gw-gutter gw-muted gw-axis-label", text: "step" }),
      this.canvas,
    );
  }

  render(model, steps) {
    const ctx = context(this.canvas, steps.width, AXIS_HEIGHT);
    if (!ctx) return;
    ctx.font = `11px ${model.ink.font}`;
    steps.draw(ctx, 0, 0, model.ink);
  }
}

/** The slider over the steps in view, and the button that moves it by itself. */
export class StepSlider {
  constructor(app) {
    this.app = app;
    this.range = el("input", {
      type: "range",
      class: "gw-range",
      test: "gw-step",
      "aria-label": "Step",
      on: { input: () => app.scrub(Number(this.range.value)) },
    });
    this.playing = false;
    this.button = iconButton("play", "Play the steps", () => this.#toggle());
    this.value = el("output", { class: "gw-figure", test: "gw-selected-step" });
    this.element = el(
      "div",
      { class: "gw-track" },
      el("div", { class: "gw-gutter gw-step-label" }, this.button, el("span", { class: "gw-muted", text: "step" }), this.value),
      this.range,
    );
  }

  render(model, steps) {
    this.range.min = steps.from;
    this.range.max = steps.to;
    this.range.value = model.step;
    this.range.style.width = `${steps.width}px`;
    this.range.setAttribute("aria-valuetext", `step ${model.step}`);
    put(this.value, count(model.step));
    this.steps = steps;
  }

  #toggle() {
    this.playing = !this.playing;
    this.#show();
    if (!this.playing) return;
    const { from, to } = this.steps;
    const current = Number(this.range.value);
    const begin = current >= to ? from : current;
    const started = performance.now() - ((begin - from) / Math.max(1, to - from)) * PLAY_SECONDS * 1000;
    const move = (now) => {
      if (!this.playing || !this.element.isConnected) return;
      const share = Math.min(1, (now - started) / (PLAY_SECONDS * 1000));
      this.app.scrub(Math.round(from + share * (to - from)));
      if (share < 1) requestAnimationFrame(move);
      else this.#toggle();
    };
    requestAnimationFrame(move);
  }

  #show() {
    const other = iconButton(this.playing ? "pause" : "play", this.playing ? "Pause" : "Play the steps", () => {});
    this.button.replaceChildren(...other.childNodes);
    this.button.title = other.title;
    this.button.setAttribute("aria-label", other.title);
  }
}
