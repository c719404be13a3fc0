// The table of layers: status, newest values, trend.
import { css, lineColors, specialColors } from "./colors.js";
import { context, el, perFrame, shown } from "./dom.js";
import { FLAG, cellText, count, plural, sentence, title } from "./format.js";

const ROW = 30;
const ROWS_IN_VIEW = 14;
const COLUMNS_AT_MOST = 6;
const SPARK = { width: 120, height: 22 };
// Least widths of the columns, in pixels, and what the style sheet puts between and around them.
const [STATUS, NAME, TYPE, NUMBER, GAP, PADDING] = [142, 170, 84, 84, 12, 8];
const ORDER = { critical: 0, warning: 1, "not observed": 2, "–": 3, ok: 4 };

export class Layers {
  constructor(app) {
    this.app = app;
    this.sort = { by: null, down: false };
    this.head = el("div", { class: "gw-thead", role: "row" });
    this.body = el("div", { class: "gw-tbody", role: "rowgroup" });
    this.scroller = el(
      "div",
      { class: "gw-table-scroller", role: "grid", "aria-label": "Layers" },
      el("div", { role: "rowgroup", class: "gw-thead-box" }, this.head),
      this.body,
    );
    this.element = this.scroller;
    this.rows = new Map();
    this.scroller.addEventListener(
      "scroll",
      perFrame(() => this.#place()),
      { passive: true },
    );
    this.scroller.addEventListener("keydown", (event) => this.#key(event));
  }

  render(model) {
    this.model = model;
    if (!model.table) return;
    const key = `${model.query} ${this.sort.by} ${this.sort.down} ${model.theme}`;
    if (this.table !== model.table || this.layout !== model.layout || this.key !== key) {
      [this.table, this.layout, this.key] = [model.table, model.layout, key];
      this.#build();
    }
    this.#place();
  }

  #build() {
    const { model } = this;
    const measured = new Set(model.table.rows.flatMap((row) => Object.keys(row.last ?? {})));
    this.statistics = model.layout.statistics.filter((statistic) => measured.has(statistic.id)).slice(0, COLUMNS_AT_MOST);
    const columns = [
      { id: "status", title: "Status" },
      { id: null, title: "Layer" },
      { id: "type", title: "Type" },
      ...this.statistics.map((statistic) => ({
        id: statistic.id,
        title: sentence(statistic.title),
        number: true,
        describe: statistic.describe,
      })),
      { id: "trend", title: "Gradient, trend", fixed: true },
    ];
    const numbers = this.statistics.map(() => `minmax(${NUMBER}px, 0.6fr)`).join(" ");
    this.scroller.style.setProperty(
      "--gw-columns",
      `${STATUS}px minmax(${NAME}px, 1.6fr) minmax(${TYPE}px, 0.7fr) ${numbers} ${SPARK.width}px`,
    );
    const gaps = (columns.length - 1) * GAP + 2 * PADDING;
    this.scroller.style.setProperty(
      "--gw-table-width",
      `${STATUS + NAME + TYPE + this.statistics.length * NUMBER + SPARK.width + gaps}px`,
    );
    this.head.replaceChildren(...columns.map((column) => this.#header(column)));
    this.shown = this.#sorted(model.table.rows.filter((row) => row.layer.toLowerCase().includes(model.query.toLowerCase())));
    this.scroller.setAttribute("aria-rowcount", this.shown.length + 1);
    this.body.style.height = `${this.shown.length * ROW}px`;
    this.body.replaceChildren();
    this.rows.clear();
  }

  #header(column) {
    const sorted = this.sort.by === column.id && (column.id !== null || this.sort.down);
    const direction = sorted ? (this.sort.down ? "descending" : "ascending") : "none";
    const click = () => {
      const same = this.sort.by === column.id;
      this.sort = same
        ? this.sort.down === Boolean(column.number)
          ? { by: column.id, down: !this.sort.down }
          : { by: null, down: false }
        : { by: column.id, down: Boolean(column.number) };
      this.render(this.model);
    };
    const arrow = sorted ? (this.sort.down ? " ↓" : " ↑") : "";
    const text = el("span", { text: column.title + arrow });
    return el(
      "div",
      { role: "columnheader", "aria-sort": column.fixed ? null : direction, class: column.number ? "gw-num" : "" },
      column.fixed ? text : el("button", { type: "button", class: "gw-sort", title: column.describe ?? null, on: { click } }, text),
    );
  }

  #sorted(rows) {
    const { by, down } = this.sort;
    if (by === null) return down ? [...rows].reverse() : rows;
    const key = (row) => {
      if (by === "status") return ORDER[row.status] ?? 5;
      if (by === "type") return row.type;
      const { value, flag = FLAG.none } = row.last?.[by] ?? {};
      if (flag === FLAG.none) return down ? -Infinity : Infinity;
      return (
        { [FLAG.nan]: Number.MAX_VALUE, [FLAG.inf]: Number.MAX_VALUE, [FLAG.negativeInf]: -Number.MAX_VALUE, [FLAG.zero]: 0 }[
          flag
        ] ?? value
      );
    };
    const sign = down ? -1 : 1;
    return [...rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      return x < y ? -sign : x > y ? sign : 0;
    });
  }

  /** "12 of 2,000 layers". */
  count() {
    const [found, all] = [this.shown?.length ?? 0, this.table?.rows.length ?? 0];
    return found === all ? plural(all, "layer") : `${count(found)} of ${plural(all, "layer")}`;
  }

  /** Only rows in view exist. */
  #place() {
    if (!this.shown) return;
    const from = Math.max(0, Math.floor(this.scroller.scrollTop / ROW) - 4);
    const to = Math.min(this.shown.length, from + Math.ceil((this.scroller.clientHeight || ROW * ROWS_IN_VIEW) / ROW) + 8);
    for (const [at, row] of this.rows) {
      if (at < from || at >= to) {
        // A row that holds the focus stays, or the focus would be lost to the page.
        if (row.contains(document.activeElement)) continue;
        row.remove();
        this.rows.delete(at);
      }
    }
    for (let at = from; at < to; at++) {
      if (!this.rows.has(at)) {
        const row = this.#row(this.shown[at], at);
        this.rows.set(at, row);
        this.body.append(row);
      }
    }
    for (const [at, row] of this.rows) {
      const selected = this.shown[at].layer === this.model.layer;
      row.classList.toggle("gw-selected", selected);
      row.setAttribute("aria-selected", String(selected));
    }
    const focusable = this.rows.get(this.focused ?? 0) ?? this.rows.values().next().value;
    for (const row of this.rows.values()) row.tabIndex = row === focusable ? 0 : -1;
  }

  #row(row, at) {
    const spark = el("canvas", { class: "gw-spark", "aria-hidden": "true" });
    const made = el(
      "div",
      {
        class: "gw-tr",
        role: "row",
        test: "gw-layer-row",
        data: { layer: row.layer },
        "aria-rowindex": at + 2,
        on: {
          click: () => {
            this.focused = at;
            this.app.select(row.layer);
          },
          focus: () => (this.focused = at),
        },
      },
      el("div", { role: "gridcell", class: "gw-status" }, ...status(row)),
      el("div", { role: "gridcell", class: "gw-name", text: row.layer, title: shown(row.layer) }),
      el("div", { role: "gridcell", class: "gw-muted gw-name", text: row.type, title: shown(row.type) }),
      ...this.statistics.map((statistic) => {
        const last = row.last?.[statistic.id];
        const text = last && last.flag !== FLAG.none ? cellText(last.value ?? NaN, last.flag, statistic.scale) : "–";
        const mark = last ? { [FLAG.nan]: "gw-is-nan", [FLAG.inf]: "gw-is-inf", [FLAG.negativeInf]: "gw-is-inf" }[last.flag] : null;
        return el("div", { role: "gridcell", class: `gw-num ${mark ?? ""}`, text });
      }),
      el("div", { role: "gridcell" }, spark),
    );
    made.style.transform = `translateY(${at * ROW}px)`;
    drawSpark(spark, row.spark?.gradient, this.model.theme);
    return made;
  }

  #key(event) {
    const move = {
      ArrowDown: 1,
      ArrowUp: -1,
      PageDown: ROWS_IN_VIEW - 2,
      PageUp: 2 - ROWS_IN_VIEW,
      Home: -Infinity,
      End: Infinity,
    }[event.key];
    if (!event.target.matches("[data-testid=gw-layer-row]")) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.app.select(event.target.dataset.layer);
    } else if (move) {
      event.preventDefault();
      this.focused = Math.min(this.shown.length - 1, Math.max(0, this.focused + move));
      const top = this.focused * ROW;
      const space = this.scroller.clientHeight - this.head.offsetHeight - ROW;
      if (top < this.scroller.scrollTop) this.scroller.scrollTop = top;
      else if (top > this.scroller.scrollTop + space) this.scroller.scrollTop = top - space;
      this.#place();
      this.rows.get(this.focused)?.focus({ preventScroll: true });
    }
  }
}

function status(row) {
  const kinds = [...(row.kinds ?? []).map(title), ...(row.over ?? []).map((kind) => `${title(kind)} (over)`)].join(", ");
  const sick = row.status === "critical" || row.status === "warning";
  const text = (sick && kinds) || row.status;
  // While something lasts elsewhere in the run, a layer of which nothing was found is not certified.
  const meaning = row.status === "–" ? "nothing found here" : row.status;
  const dot = sick ? row.status : row.status === "ok" ? "ok" : row.status === "–" ? "unsure" : "unseen";
  return [
    el("span", { class: `gw-dot gw-${dot}` }),
    el("span", { class: "gw-name", text, title: kinds ? `${meaning}: ${kinds}` : shown(meaning) }),
  ];
}

function drawSpark(canvas, spark, theme) {
  const { width, height } = SPARK;
  const ctx = context(canvas, width, height);
  const values = spark?.values ?? [];
  if (!ctx || !values.length) return;
  const logs = values.map((value, at) => (spark.flags[at] === FLAG.value ? Math.log10(value) : NaN));
  const known = logs.filter(Number.isFinite);
  const middle = known.length ? (Math.min(...known) + Math.max(...known)) / 2 : 0;
  // Less than two decades is noise, and would look like a trend if it filled the height.
  const reach = known.length ? Math.max(1, (Math.max(...known) - Math.min(...known)) / 2) : 1;
  const special = specialColors(theme);
  ctx.strokeStyle = lineColors(theme)[0];
  ctx.lineWidth = 1.25;
  ctx.beginPath();
  let drawing = false;
  logs.forEach((log, at) => {
    const x = 2 + (at / Math.max(1, logs.length - 1)) * (width - 4);
    const flag = spark.flags[at];
    if (Number.isFinite(log)) {
      const y = height / 2 - ((log - middle) / reach) * (height / 2 - 3);
      if (drawing) ctx.lineTo(x, y);
      else ctx.moveTo(x, y);
      drawing = true;
      return;
    }
    drawing = false;
    const color = { [FLAG.nan]: special.nan, [FLAG.inf]: special.inf, [FLAG.negativeInf]: special.inf, [FLAG.zero]: special.zero }[
      flag
    ];
    if (!color) return;
    ctx.fillStyle = css(color);
    ctx.fillRect(x - 1, flag === FLAG.zero ? height - 4 : 0, 2, 4);
  });
  ctx.stroke();
}
