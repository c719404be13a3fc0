// The parts of the page and where they stand.
import { el, icon, iconButton, select } from "./dom.js";

const SNIPPET = `import gradwatch

with gradwatch.watch(model, optimizer, logdir="runs/exp1"):
    for x, y in loader:
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()`;

const KEYS = [
  ["← →", "step"],
  ["↑ ↓", "layer"],
  ["Enter", "choose, fold or unfold"],
  ["+ − 0", "zoom in, out, all"],
  ["Shift ← →", "pan"],
  ["drag", "zoom in"],
  ["double-click", "all steps"],
];

/** A card with a heading; `tools` stand beside it. */
function card(name, heading, tools, ...content) {
  const title = el("h2", { id: `gw-h-${name}` }, ...heading);
  return el(
    "section",
    { class: `gw-card gw-card-${name}`, "aria-labelledby": `gw-h-${name}` },
    el("header", { class: "gw-card-head" }, title, ...tools),
    ...content,
  );
}

/**
 * Builds the page once.
 *
 * @param root where it goes
 * @param parts heat, loss, axis, slider, legend, incidents, flow, series, layers
 * @param on run, compare, statistic, aggregate, flow, search, fold, unfold, fit, zoomIn, zoomOut, zoomReset, share: what to do
 */
export function build(root, parts, on) {
  const page = {};
  const pick = (name, label, test) => {
    const { box, field } = select(label, test, on[name]);
    page[name] = box;
    return field;
  };
  page.search = el("input", {
    type: "search",
    class: "gw-search",
    test: "gw-search",
    placeholder: "Find layers",
    "aria-label": "Find layers",
    spellcheck: "false",
    on: { input: () => on.search(page.search.value) },
  });
  page.found = el("span", { class: "gw-muted gw-found", test: "gw-search-count" });
  page.share = el(
    "button",
    { type: "button", class: "gw-button", test: "gw-share", on: { click: on.share } },
    icon("link"),
    el("span", { text: "Copy link" }),
  );
  page.title = el("h1", { text: "Gradient health" });
  page.summary = el("span", { class: "gw-muted gw-summary" });
  page.bar = el(
    "header",
    { class: "gw-bar" },
    page.title,
    page.summary,
    el("div", { class: "gw-spring" }),
    pick("run", "Run", "gw-run-select"),
    pick("compare", "Compare with", "gw-compare-select"),
    page.share,
  );
  page.notes = el("div", { class: "gw-notes", test: "gw-notes", hidden: true });
  page.error = el("div", { class: "gw-error", test: "gw-error", role: "alert", hidden: true });
  page.hint = el("p", { class: "gw-muted" });
  page.empty = el(
    "section",
    { class: "gw-empty", test: "gw-empty", hidden: true },
    el("h2", { text: "No gradients yet" }),
    el("p", { text: "Nothing that gradwatch recorded was found here. Watch a training, and its layers appear:" }),
    el("pre", {}, el("code", { class: "gw-snippet" })),
    page.hint,
  );
  page.empty.querySelector("code").textContent = SNIPPET;
  page.loading = el("div", { class: "gw-loading", role: "status", "aria-label": "Loading", hidden: true });
  page.live = el("div", { class: "gw-live", test: "gw-live", "aria-live": "polite", role: "status" });
  page.describe = el("p", { class: "gw-describe gw-muted" });
  const hide = () => (page.shareBox.hidden = true);
  page.shareBox = el("input", {
    class: "gw-share-box",
    readonly: true,
    "aria-label": "Link to this view",
    hidden: true,
    on: { blur: hide },
  });

  page.fit = iconButton("rows", "Fit all rows into the window", on.fit);
  page.fit.setAttribute("aria-pressed", "false");
  page.zoomReset = iconButton("reset", "All steps", on.zoomReset, "gw-zoom-reset");
  const tools = el(
    "div",
    { class: "gw-tools" },
    el("span", { class: "gw-search-field" }, icon("search"), page.search, page.found),
    pick("aggregate", "Groups show", "gw-aggregate-select"),
    el(
      "span",
      { class: "gw-buttons", role: "group", "aria-label": "Rows" },
      iconButton("fold", "Fold all groups", on.fold, "gw-fold-all"),
      iconButton("unfold", "Unfold all groups", on.unfold, "gw-unfold-all"),
      page.fit,
    ),
    el(
      "span",
      { class: "gw-buttons", role: "group", "aria-label": "Steps" },
      iconButton("minus", "Zoom out", on.zoomOut),
      iconButton("plus", "Zoom in", on.zoomIn),
      page.zoomReset,
    ),
  );
  const help = el(
    "p",
    { class: "gw-keys gw-muted", id: "gw-keys" },
    ...KEYS.map(([key, what]) => el("span", {}, el("kbd", { text: key }), ` ${what}`)),
  );
  page.statisticField = pick("statistic", "Statistic", "gw-statistic-select");
  page.statisticField.classList.add("gw-main-select");
  page.selected = el("code", { class: "gw-name gw-selected-layer", test: "gw-selected-layer" });
  page.selectedType = el("span", { class: "gw-muted gw-selected-type" });
  page.layersCount = el("span", { class: "gw-muted" });

  page.main = el(
    "main",
    { class: "gw-main", hidden: true },
    card(
      "map",
      [page.statisticField],
      [tools],
      page.describe,
      el("div", { class: "gw-map" }, parts.loss.element, parts.heat.element, parts.axis.element, parts.slider.element),
      parts.legend.element,
      help,
    ),
    card("incidents", ["Incidents", parts.incidents.count], [], parts.incidents.element),
    card("flow", ["Gradient flow"], [pick("flow", "of", "gw-flow-select")], parts.flow.element),
    card("series", ["Layer"], [page.selected, page.selectedType], parts.series.element),
    card("layers", ["Layers"], [page.layersCount], parts.layers.element),
  );
  root.replaceChildren(page.bar, page.shareBox, page.loading, page.error, page.notes, page.empty, page.main, page.live);
  return page;
}
