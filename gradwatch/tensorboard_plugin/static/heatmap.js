// The heat-map: layers in forward order against steps.
import { Steps } from "./axis.js";
import { channels } from "./colors.js";
import { context, el, perFrame, shown } from "./dom.js";
import { count, plural, span, title } from "./format.js";
import { LABEL_EVERY, Labels } from "./labels.js";
import { badge, lasting } from "./markers.js";
import { Raster } from "./raster.js";

const READABLE = 18;
const TALLEST = 26;

/** Labels and canvas share one scrolling box; only what is in view exists. */
export class Heatmap {
  constructor(app) {
    this.app = app;
    this.fit = false;
    this.hover = null;
    this.labels = new Labels(app, () => this.element.focus({ preventScroll: true }));
    this.canvas = el("canvas", { class: "gw-map-canvas", test: "gw-heatmap", "aria-hidden": "true" });
    this.marks = el("canvas", { class: "gw-marks-canvas", "aria-hidden": "true" });
    this.cursorLine = el("div", { class: "gw-cursor" });
    this.cell = el("div", { class: "gw-cell" });
    this.brush = el("div", { class: "gw-brush", hidden: true });
    this.hoverRow = el("div", { class: "gw-hover-row", hidden: true });
    this.plot = el("div", { class: "gw-plot" }, this.canvas, this.hoverRow, this.cursorLine, this.cell, this.marks, this.brush);
    this.ticks = el("div", { class: "gw-ticks", "aria-hidden": "true" });
    this.sticky = el("div", { class: "gw-sticky" }, this.labels.element, this.plot, this.ticks);
    this.spacer = el("div", { class: "gw-spacer" });
    this.element = el(
      "div",
      {
        class: "gw-scroller",
        tabindex: "0",
        role: "application",
        "aria-roledescription": "heat-map",
        "aria-label": "Heat-map of layers against steps",
        "aria-describedby": "gw-keys",
      },
      this.sticky,
      this.spacer,
    );
    this.raster = new Raster(this.canvas);
    this.redraw = perFrame(() => this.render(this.model));
    this.element.addEventListener("scroll", this.redraw, { passive: true });
  }

  /** Height of a row in pixels. */
  get rowHeight() {
    const { rows } = this.model;
    const space = this.height / Math.max(1, rows.length);
    return this.fit ? Math.min(TALLEST, space) : Math.min(TALLEST, Math.max(READABLE, Math.floor(space)));
  }

  /** Height of the window at most. */
  get height() {
    return Math.round(Math.min(680, Math.max(240, window.innerHeight * 0.52)));
  }

  /** The steps in view, over the width of the canvas. */
  get steps() {
    return new Steps(this.model.from, this.model.to, this.width);
  }

  render(model) {
    this.model = model;
    if (!model?.painter) return;
    this.labels.fit(model, this.element.clientWidth);
    this.width = this.plot.clientWidth;
    const rowHeight = this.rowHeight;
    const total = rowHeight * model.rows.length;
    const height = Math.max(LABEL_EVERY, Math.round(Math.min(total, this.height)));
    this.element.style.height = `${height}px`;
    this.sticky.style.height = `${height}px`;
    this.spacer.style.height = `${Math.max(0, total - height)}px`;
    this.viewHeight = height;
    if (!(this.width > 0)) return;
    this.scroll = Math.min(this.element.scrollTop, Math.max(0, total - height));
    this.first = Math.floor(this.scroll / rowHeight);
    this.end = Math.min(model.rows.length, Math.ceil((this.scroll + height) / rowHeight));
    const { painter, rowsKey, aggregate, theme, from, to, marks, parameters } = model;
    const drawn = [
      painter,
      rowsKey,
      aggregate,
      theme,
      from,
      to,
      marks,
      ...parameters,
      this.scroll,
      this.width,
      height,
      rowHeight,
      window.devicePixelRatio,
    ];
    if (this.drawn?.length !== drawn.length || drawn.some((part, at) => part !== this.drawn[at])) {
      this.drawn = drawn;
      this.#draw(height, rowHeight);
      this.#tick(total, height);
    }
    this.labels.render(model, this, rowHeight);
    this.#overlay();
  }

  /** Shows which row is pointed at. */
  point(under) {
    if (this.hover?.at === under?.at) return;
    this.hover = under;
    this.#overlay();
  }

  #draw(height, rowHeight) {
    const { model, canvas } = this;
    const ratio = window.devicePixelRatio || 1;
    const [w, h] = [Math.round(this.width * ratio), Math.round(height * ratio)];
    if (canvas.width !== w || canvas.height !== h) {
      canvas.width = w;
      canvas.height = h;
      canvas.style.width = `${this.width}px`;
      canvas.style.height = `${height}px`;
    }
    this.raster.draw(
      w,
      h,
      this.#strips(h, rowHeight, ratio),
      this.steps,
      model.painter.scale,
      model.theme,
      channels(model.ink.card),
    );
    this.#mark(context(this.marks, this.width, height), rowHeight);
  }

  #strips(h, rowHeight, ratio) {
    const { model } = this;
    const strips = [];
    if (rowHeight * ratio < 1) {
      // More rows than pixels: each line of pixels shows the worst of its rows.
      const perLine = 1 / (rowHeight * ratio);
      for (let y = 0; y < h; y++)
        strips.push({ ...this.#line(Math.floor(y * perLine), Math.floor((y + 1) * perLine)), top: y, height: 1 });
      return strips;
    }
    const gap = rowHeight >= 8 ? Math.max(1, Math.round(ratio)) : 0;
    for (let at = this.first; at < this.end; at++) {
      const painted = model.codes(model.rows[at]);
      if (!painted) continue;
      const top = Math.round((at * rowHeight - this.scroll) * ratio);
      const bottom = Math.round(((at + 1) * rowHeight - this.scroll) * ratio);
      strips.push({ ...painted, top, height: bottom - top - gap });
    }
    return strips;
  }

  #line(from, to) {
    const { model } = this;
    if (this.linesOf !== model.painter || this.linesKey !== model.rowsKey) {
      [this.linesOf, this.linesKey, this.lines] = [model.painter, model.rowsKey, new Map()];
    }
    if (!this.lines.has(from)) {
      const rows = model.rows.slice(from, Math.max(to, from + 1));
      const layers = rows.filter(({ kind }) => kind === "layer");
      const leaves = (layers.length ? layers : rows).flatMap((row) => row.leaves);
      this.lines.set(from, model.painter.worst(leaves.map(model.gridRow).filter((row) => row !== undefined)));
    }
    return { codes: this.lines.get(from), grid: model.painter.grid };
  }

  /** Where a layer is seen: its own row, or that of the folded group around it. */
  rowOf(layer) {
    if (this.placesKey !== this.model.rowsKey) {
      this.places = new Map();
      this.model.rows.forEach((row, at) => row.leaves.forEach((leaf) => this.places.set(leaf, at)));
      this.placesKey = this.model.rowsKey;
    }
    return this.places.get(layer) ?? -1;
  }

  #mark(ctx, rowHeight) {
    const { model, steps } = this;
    const radius = Math.min(8, Math.max(5.5, rowHeight / 2 - 1));
    this.spots = [];
    const placed = new Set();
    // Causes last, so that no consequence covers one.
    for (const mark of [...model.marks].sort((a, b) => a.cause - b.cause)) {
      const at = this.rowOf(model.leafOf(mark.layer));
      if (at < 0 || at < this.first - 1 || at > this.end) continue;
      const { first_step: first, last_step: last } = mark.finding;
      if (last < steps.from || first > steps.to) continue;
      const y = (at + 0.5) * rowHeight - this.scroll;
      const x = Math.min(this.width - radius - 2, Math.max(radius + 2, steps.center(Math.max(first, steps.from))));
      const place = `${mark.cause ? mark.number : "·"} ${at} ${Math.round(x / 4)}`;
      if (placed.has(place)) continue;
      placed.add(place);
      if (mark.cause && rowHeight >= 6)
        lasting(ctx, x, Math.min(this.width - 2, steps.x(last + 1)), y + Math.min(radius - 1, rowHeight / 2 - 2));
      badge(ctx, x, y, mark, radius);
      this.spots.push({ x, y, mark, radius: mark.cause ? radius + 2 : radius * 0.42 + 3 });
    }
  }

  /** Where causes are, of rows that may be out of view. */
  #tick(total, height) {
    const { model } = this;
    const causes = total > height ? model.marks.filter(({ cause }) => cause) : [];
    const ticks = causes.map((mark) => {
      const at = this.rowOf(model.leafOf(mark.layer));
      if (at < 0) return null;
      const click = () => this.app.select(mark.finding.layer, mark.finding.first_step);
      const tick = el("button", {
        type: "button",
        tabindex: "-1",
        class: `gw-tick gw-${mark.finding.severity}`,
        title: `${mark.number}: ${shown(mark.layer)}`,
        on: { click },
      });
      tick.style.top = `${Math.min(height - 5, ((at + 0.5) / model.rows.length) * height - 2)}px`;
      return tick;
    });
    this.ticks.replaceChildren(...ticks.filter(Boolean));
  }

  #overlay() {
    const { model, steps } = this;
    const seen = model.step >= steps.from && model.step <= steps.to;
    const { from, width } = this.#extent(model.step);
    this.cursorLine.hidden = !seen;
    this.cursorLine.style.transform = `translateX(${steps.center(model.step) - 0.5}px)`;
    const at = model.rows.findIndex((row) => row.key === model.cursor);
    const top = at * this.rowHeight - this.scroll;
    this.cell.hidden = at < 0 || !seen || top < -this.rowHeight || top > this.viewHeight;
    this.cell.style.transform = `translate(${from - 1}px, ${top - 1}px)`;
    this.cell.style.width = `${Math.max(6, width) + 2}px`;
    this.cell.style.height = `${Math.max(6, this.rowHeight) + 1}px`;
    const hovered = this.hover ? this.hover.at * this.rowHeight - this.scroll : 0;
    this.hoverRow.hidden = !this.hover || this.rowHeight < 4;
    this.hoverRow.style.transform = `translateY(${hovered}px)`;
    this.hoverRow.style.height = `${this.rowHeight}px`;
  }

  /** The pixels of the column that stands for a step, inside of the window. */
  #extent(step) {
    const { grid } = this.model.painter;
    const { steps } = this;
    const column = grid.column(step);
    const [first, end] = column < 0 ? [step, step + 1] : [grid.steps[column], grid.end(column)];
    const from = Math.max(0, steps.x(first));
    return { from, width: Math.min(this.width, steps.x(end)) - from };
  }

  /** {row, at, step} under a point of the window; null outside of the cells. */
  under(clientX, clientY) {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [clientX - box.left, clientY - box.top];
    if (x < 0 || y < 0 || x >= this.width || y >= this.viewHeight || !this.model?.painter) return null;
    const at = Math.floor((y + this.scroll) / this.rowHeight);
    const row = this.model.rows[at];
    return row ? { row, at, x, y, step: this.steps.step(x) } : null;
  }

  /** The finding whose mark is under a place of the canvas. */
  markAt({ x, y }) {
    return this.spots?.findLast((spot) => Math.hypot(spot.x - x, spot.y - y) <= spot.radius)?.mark;
  }

  /** The middle of a row's cell at a step, in pixels of the window; null where it is not in view. */
  center(name, step) {
    const at = this.model.rows.findLastIndex((row) => row.name === name);
    const y = (at + 0.5) * this.rowHeight - this.scroll;
    if (at < 0 || y < 0 || y > this.viewHeight || step < this.model.from || step > this.model.to) return null;
    const box = this.canvas.getBoundingClientRect();
    const { from, width } = this.#extent(step);
    return { x: box.left + from + width / 2, y: box.top + y };
  }

  /** Scrolls until a row is in view. */
  reveal(at) {
    const [top, bottom] = [at * this.rowHeight, (at + 1) * this.rowHeight];
    if (top < this.element.scrollTop) this.element.scrollTop = top - this.rowHeight;
    else if (bottom > this.element.scrollTop + this.viewHeight) this.element.scrollTop = bottom - this.viewHeight + this.rowHeight;
  }

  /** Tells screen readers what the picture is of. */
  describeAll() {
    const { statistic, rows, from, to } = this.model;
    const what = `Heat-map of ${shown(statistic.title)}: ${plural(rows.length, "row")} over ${span(from, to)}`;
    const text = `${what}. Arrow keys move; the figures are read out.`;
    if (this.element.getAttribute("aria-label") !== text) this.element.setAttribute("aria-label", text);
  }

  /** What stands in a cell, as the lines of a tooltip. */
  describe({ row, step }, mark) {
    const { model } = this;
    const lines = [el("div", { class: "gw-tip-name", text: row.name })];
    const { value, recorded, held, notes } = model.reading(row, step);
    const steps = recorded ? span(recorded.first, recorded.last) : span(step, step);
    lines.push(el("div", { class: "gw-tip-value", text: value }));
    lines.push(el("div", { class: "gw-tip-note", text: held ? `${steps} (newest before step ${count(step)})` : steps }));
    for (const note of notes) lines.push(el("div", { class: "gw-tip-note", text: note }));
    if (mark) {
      const { finding } = mark;
      lines.push(el("div", { class: "gw-tip-finding" }, el("b", { text: title(finding.kind) }), ` ${shown(finding.message)}`));
    }
    return lines;
  }
}
