// The names beside the heat-map: a tree of groups, layers and parameters.
import { el, icon, shown } from "./dom.js";
import { count, plural } from "./format.js";

/** Least height of a label, in pixels. */
export const LABEL_EVERY = 13;
const CHARACTER = 6.9;

export class Labels {
  /**
   * @param app toggle, point
   * @param focus gives the keys back to the heat-map
   */
  constructor(app, focus) {
    this.app = app;
    this.focus = focus;
    this.kept = new Map();
    this.element = el("div", { class: "gw-labels", role: "tree", "aria-label": "Layers, in forward order" });
  }

  /** Labels get what the longest of them needs, so that folding moves nothing sideways. */
  fit(model, space) {
    const key = `${model.query ? model.rowsKey : ""} ${space}`;
    if (this.gutterOf === model.tree && this.gutterKey === key) return;
    [this.gutterOf, this.gutterKey] = [model.tree, key];
    const longest = model.query ? model.rows.reduce((most, { label }) => Math.max(most, label.length + 2), 0) : model.tree.widest();
    const most = Math.max(110, Math.min(340, space * 0.34));
    const width = Math.round(Math.min(most, Math.max(118, 44 + longest * CHARACTER)));
    this.app.root.style.setProperty("--gw-gutter", `${width}px`);
  }

  /** The rows that have space for a label; where there is not enough for all, groups come before what is in them. */
  #labelled(rows, { first, end }, rowHeight) {
    const places = Array.from({ length: end - first }, (_, at) => first + at);
    if (rowHeight >= LABEL_EVERY) return places;
    const taken = [];
    return places
      .sort((a, b) => rows[a].depth - rows[b].depth || a - b)
      .filter((at) => {
        const free = taken.every((other) => Math.abs(other - at) * rowHeight >= LABEL_EVERY);
        if (free) taken.push(at);
        return free;
      });
  }

  /** Shows the labels of a window of rows: {first, end, scroll}, and the height of a row. */
  render(model, view, rowHeight) {
    this.model = model;
    const wanted = new Map();
    for (const at of this.#labelled(model.rows, view, rowHeight)) {
      wanted.set(model.rows[at].key, { row: model.rows[at], top: at * rowHeight - view.scroll, at });
    }
    for (const [key, label] of this.kept) {
      if (!wanted.has(key)) {
        label.element.remove();
        this.kept.delete(key);
      }
    }
    for (const [key, { row, top, at }] of wanted) {
      let label = this.kept.get(key);
      const state = [
        row.label,
        row.depth,
        row.open,
        row.folds,
        model.severity(row),
        row.name === model.layer,
        key === model.cursor,
      ];
      const signature = state.join(" ");
      if (label?.signature !== signature) {
        const element = this.#made(row);
        if (label) label.element.replaceWith(element);
        else this.element.append(element);
        label = { element, signature };
        this.kept.set(key, label);
      }
      label.element.style.transform = `translateY(${top}px)`;
      label.element.style.height = `${Math.max(rowHeight, LABEL_EVERY)}px`;
      label.element.style.lineHeight = `${Math.max(rowHeight, LABEL_EVERY)}px`;
      label.element.dataset.index = at;
    }
  }

  #made(row) {
    const { model } = this;
    const severity = model.severity(row);
    const group = row.kind === "group";
    const classes = ["gw-row-label", `gw-${row.kind}`];
    if (row.name === model.layer && !group) classes.push("gw-selected");
    if (row.key === model.cursor) classes.push("gw-at");
    const label = el(
      "div",
      {
        class: classes.join(" "),
        test: "gw-row-label",
        data: { layer: row.name },
        role: "treeitem",
        title: `${shown(row.name)} · ${group ? plural(row.leaves.length, "layer") : shown(model.typeOf(row))}`,
        "aria-level": row.depth,
        "aria-expanded": row.folds ? String(row.open) : null,
        "aria-selected": String(row.name === model.layer),
        on: { click: (event) => this.#pressed(event, row) },
      },
      el("span", { class: row.folds ? "gw-chevron" : "gw-no-chevron" }, row.folds ? icon("chevron") : null),
      el("span", { class: "gw-name", text: row.label }),
      group ? el("span", { class: "gw-count", text: count(row.leaves.length) }) : null,
      severity ? el("span", { class: `gw-dot gw-${severity}`, title: severity, "aria-label": severity }) : null,
    );
    label.style.paddingInlineStart = `${4 + 12 * (row.depth - 1)}px`;
    if (row.open) label.classList.add("gw-open");
    return label;
  }

  #pressed(event, row) {
    const onChevron = event.target.closest(".gw-chevron");
    if (row.kind === "group" || onChevron) this.app.toggle(row);
    if (!onChevron) this.app.point(row);
    this.focus();
  }
}
