// The "Gradient health" view: mounts the page, keeps its state, and asks the source for what the state needs.
import { Answers } from "./answers.js";
import { specialColors } from "./colors.js";
import { Tooltip, perFrame, put, shown } from "./dom.js";
import { Flow } from "./flow.js";
import { span } from "./format.js";
import { cells, keys, scrub, zoom } from "./gestures.js";
import { showHead, showState } from "./head.js";
import { Heatmap } from "./heatmap.js";
import { Incidents } from "./incidents.js";
import { lookupInk } from "./ink.js";
import { Layers } from "./layers.js";
import { Legend } from "./legend.js";
import { Modeller } from "./model.js";
import { build } from "./page.js";
import { Series } from "./series.js";
import { known, readState } from "./state.js";
import { Loss, StepAxis, StepSlider } from "./timeline.js";
import { want } from "./wanted.js";

// The heat-map's share of the page where the incidents stand beside it, from a width on, and what its labels take of that.
const [BESIDE, MAP_SHARE, LABELS] = [1240, 0.75, 180];
const WIDTHS = 200;
const SAY_DELAY = 250;

/**
 * Mounts the view.
 *
 * @param root element that the view fills
 * @param source asked for runs, layouts, grids, series, tables, incidents, losses
 * @param options.host theme, state for links
 * @returns {refresh, dispose}
 */
export function mount(root, source, { host }) {
  const view = new View(root, source, host);
  root.gradwatch = {
    ready: view.ready,
    state: () => view.link(),
    cellCenter: (name, step) => view.heat.center(name, step),
    colors: () => specialColors(view.look.theme),
  };
  return { refresh: () => view.refresh(), dispose: () => view.dispose() };
}

class View {
  constructor(root, source, host) {
    [this.root, this.source, this.host] = [root, source, host];
    root.classList.add("gw");
    this.state = readState(host.getState?.());
    this.look = {
      query: "",
      aggregate: "worst",
      flow: null,
      theme: "light",
      cursor: null,
      toggled: new Map(),
      opened: new Set(),
      version: 0,
    };
    this.draw = perFrame(() => this.#draw());
    this.answers = new Answers(source, () => {
      this.#load();
      this.draw();
    });
    this.modeller = new Modeller();
    this.ready = new Promise((resolve) => (this.isReady = resolve));
    this.tooltip = new Tooltip(root);
    this.#parts();
    root.append(this.tooltip.box);
    this.#watch();
    this.#theme(host.theme?.() ?? "light");
  }

  #parts() {
    const parts = {
      heat: new Heatmap(this),
      loss: new Loss(),
      axis: new StepAxis(),
      slider: new StepSlider(this),
      legend: new Legend(),
      incidents: new Incidents(this),
      flow: new Flow(this),
      series: new Series(this),
      layers: new Layers(this),
    };
    this.parts = parts;
    this.heat = parts.heat;
    const zoomed = (factor) => () => zoom(this, this.heat.steps, factor, this.model.step);
    this.page = build(this.root, parts, {
      run: (run) =>
        this.change({
          run,
          from: undefined,
          to: undefined,
          step: undefined,
          compare: this.state.compare === run ? undefined : this.state.compare,
        }),
      compare: (compare) => this.change({ compare: compare || undefined }),
      statistic: (statistic) => this.change({ statistic }),
      aggregate: (aggregate) => this.adjust({ aggregate }),
      flow: (flow) => this.adjust({ flow }),
      search: (query) => this.adjust({ query }),
      fold: () => this.#foldAll(false),
      unfold: () => this.#foldAll(true),
      fit: () => {
        this.heat.fit = !this.heat.fit;
        this.page.fit.setAttribute("aria-pressed", String(this.heat.fit));
        this.draw();
      },
      zoomIn: zoomed(0.5),
      zoomOut: zoomed(2),
      zoomReset: () => this.window(null, null),
      share: () => this.#share(),
    });
    cells(this.heat, this);
    keys(this.heat, this);
    scrub(parts.loss.canvas, this.heat, this);
    scrub(parts.axis.canvas, this.heat, this);
  }

  #watch() {
    this.ends = [];
    const observer = new ResizeObserver(() => {
      this.#load();
      this.draw();
    });
    observer.observe(this.root);
    this.ends.push(() => observer.disconnect());
    this.ends.push(this.host.onTheme?.((theme) => this.#theme(theme)));
    this.ends.push(this.source.subscribe?.(() => this.refresh()));
    this.ends.push(
      this.host.onState?.((given) => {
        const state = readState(given);
        if (JSON.stringify(state) === JSON.stringify(readState(this.link()))) return;
        this.state = state;
        this.#load();
        this.draw();
      }),
    );
  }

  #theme(theme) {
    this.root.dataset.theme = theme;
    this.look.theme = theme;
    this.look.ink = lookupInk(this.root);
    this.#load();
    this.draw();
  }

  /** Changes the state that a link holds. */
  change(part) {
    Object.assign(this.state, part);
    this.#load();
    this.draw();
    clearTimeout(this.saving);
    this.saving = setTimeout(() => this.host.setState?.(this.link()), SAY_DELAY);
  }

  /** Changes how things are shown. */
  adjust(part) {
    Object.assign(this.look, part);
    this.look.version++;
    this.#load();
    this.draw();
  }

  /** The state of a link: only what is known. */
  link() {
    return known(this.state);
  }

  /** Shows the steps from `from` to `to`, as many as there are; null: all. */
  window(from, to) {
    const { first, last } = this.model;
    if (from === null || (from <= first && to >= last)) return this.change({ from: undefined, to: undefined });
    const wide = Math.min(last - first, Math.max(4, to - from));
    const begin = Math.max(first, Math.min(from, last - wide));
    const end = begin + wide;
    const step = Math.min(end, Math.max(begin, this.model.step));
    return this.change({ from: begin, to: end, ...(step === this.model.step ? {} : { step }) });
  }

  /** Moves the step; at the newest one it follows the run from there on. */
  scrub(step) {
    this.change({ step: step >= this.model.last ? undefined : Math.max(this.model.first, step) });
  }

  /** Looks at a row, and at a step where one is given; a layer is chosen as well. */
  point(row, step) {
    this.look.cursor = row.key;
    const chosen = row.kind === "group" ? {} : { layer: this.model.tree.layers[row.layer].name };
    this.change(step === undefined ? chosen : { ...chosen, step });
    this.#say();
  }

  /** Chooses a layer, and a step where one is given, and brings both into view. */
  select(name, step) {
    const layer = this.model.layerOf(name) ?? this.model.layer;
    const part = { layer };
    if (step !== undefined) {
      part.step = step;
      if (step < this.model.from || step > this.model.to) Object.assign(part, { from: undefined, to: undefined });
    }
    const at = this.model.tree ? this.model.leafOf(layer) : -1;
    if (at >= 0) {
      for (const path of this.model.tree.around(at)) this.look.toggled.set(path, true);
      this.look.cursor = `layer ${layer}`;
      if (this.look.query && !layer.toLowerCase().includes(this.look.query.toLowerCase()))
        this.page.search.value = this.look.query = "";
      this.look.version++;
    }
    this.revealing = at >= 0;
    this.change(part);
    this.#say();
  }

  /** Moves the cursor over rows and recorded steps. */
  move(rows, columns) {
    const { model } = this;
    const now = model.rows.findIndex((row) => row.key === this.look.cursor);
    const at = now < 0 ? Math.max(0, this.heat.first) : Math.min(model.rows.length - 1, Math.max(0, now + rows));
    this.look.cursor = model.rows[at]?.key ?? null;
    if (columns) {
      const { grid } = model.painter;
      const next = grid.column(model.step) + columns;
      // Where nothing was recorded there is no column to go on from.
      const step = next >= 0 && grid.column(model.step) >= 0 ? grid.steps[Math.min(grid.columns - 1, next)] : model.step + columns;
      this.scrub(step);
      if (step < model.from || step > model.to) this.window(model.from + step - model.step, model.to + step - model.step);
    }
    this.revealing = true;
    this.draw();
    this.#say();
  }

  /** Folds or unfolds the row under the cursor, or chooses its layer. */
  enter(parameters = false) {
    const row = this.model.rows.find(({ key }) => key === this.look.cursor);
    if (!row) return;
    if (row.kind === "group" || (parameters && row.folds)) this.toggle(row);
    else this.point(row);
  }

  /** Folds or unfolds a row. */
  toggle(row) {
    if (row.kind === "group") this.look.toggled.set(row.name, !row.open);
    else if (this.look.opened.has(row.name)) this.look.opened.delete(row.name);
    else this.look.opened.add(row.name);
    this.adjust({});
    this.#say();
  }

  #foldAll(open) {
    for (const { path } of this.model.tree?.groups ?? []) this.look.toggled.set(path, open);
    if (!open) this.look.opened.clear();
    this.adjust({});
  }

  #say() {
    clearTimeout(this.saying);
    this.saying = setTimeout(() => {
      const { model } = this;
      const row = model?.rows?.find(({ key }) => key === this.look.cursor);
      if (!row) return;
      const { value, recorded } = model.reading(row, model.step);
      const kind = row.folds ? `, ${row.open ? "unfolded" : "folded"}` : "";
      const when = recorded ? span(recorded.first, recorded.last) : span(model.step, model.step);
      const severity = model.severity(row);
      this.page.live.textContent = shown(
        `${row.name}${kind}, ${when}, ${model.statistic.title}: ${value}${severity ? `, ${severity}` : ""}`,
      );
    }, SAY_DELAY);
  }

  async #share() {
    const url = this.host.shareUrl(this.link());
    const { share, shareBox } = this.page;
    const label = share.querySelector("span");
    try {
      await navigator.clipboard.writeText(url);
      label.textContent = "Copied";
      setTimeout(() => (label.textContent = "Copy link"), 1500);
    } catch {
      // A frame may not have the right to write to the clipboard.
      shareBox.hidden = false;
      shareBox.value = url;
      shareBox.select();
    }
  }

  /** Asks for everything anew, and shows the old until the new is there. */
  refresh() {
    this.answers.renew();
    this.#load();
    this.draw();
  }

  dispose() {
    for (const end of this.ends) end?.();
    clearTimeout(this.saving);
    clearTimeout(this.saying);
    this.disposed = true;
    this.root.replaceChildren();
    delete this.root.gradwatch;
  }

  #load() {
    if (this.disposed) return;
    want(this.answers, this.source, this.state, this.look, this.#width());
    this.model = this.modeller.model(this.state, this.look, this.answers);
    this.heat.model = this.model;
  }

  /** About the width of the heat-map, in steps: what is asked for it must not change with every pixel. 0 in a hidden tab. */
  #width() {
    const whole = this.root.clientWidth;
    const map = (whole >= BESIDE ? whole * MAP_SHARE : whole) - LABELS;
    return whole > 0 ? Math.max(1, Math.ceil(map / WIDTHS)) * WIDTHS : 0;
  }

  #draw() {
    if (this.disposed) return;
    this.#show();
    if (this.answers.pending === 0) this.isReady();
  }

  #show() {
    const { answers, page } = this;
    page.loading.hidden = answers.pending === 0;
    const runs = answers.get("runs");
    const errors = [...new Set([...answers.errors.values()].map((error) => error?.message ?? String(error)))];
    page.error.hidden = !errors.length;
    put(page.error, errors.map(shown).join("\n"));
    if (!runs) return;
    page.empty.hidden = runs.length > 0;
    page.main.hidden = !runs.length;
    page.bar.classList.toggle("gw-bare", !runs.length);
    put(page.hint, shown(this.host.emptyHint ?? ""));
    put(page.title, shown(this.host.title ?? "Gradient health"));
    if (!runs.length) return;
    showHead(page, this.model, this.host, runs);
    if (!this.model.layout) return;
    this.heat.render(this.model);
    if (!this.model.painter || !(this.heat.width > 0)) return;
    if (this.revealing) this.#reveal();
    this.#rest();
  }

  #reveal() {
    this.revealing = false;
    const at = this.model.rows.findIndex(({ key }) => key === this.look.cursor);
    if (at < 0) return;
    this.heat.reveal(at);
    this.heat.render(this.model);
  }

  #rest() {
    const { page, model, parts } = this;
    const { steps } = parts.heat;
    parts.loss.render(model, steps);
    parts.axis.render(model, steps);
    parts.slider.render(model, steps);
    parts.legend.render(model);
    parts.incidents.render(model);
    parts.flow.render(model);
    parts.series.render(model);
    parts.layers.render(model);
    showState(page, model, parts.layers.count());
    parts.heat.describeAll();
  }
}
