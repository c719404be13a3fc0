// What was found: the first cause of each incident, and what follows from it.
import { el, icon } from "./dom.js";
import { count, number, plural, sentence, span, title } from "./format.js";

const SHOWN = 40;

export class Incidents {
  constructor(app) {
    this.app = app;
    this.list = el("ol", { class: "gw-incidents" });
    this.element = el("div", { class: "gw-incident-box" }, this.list);
    this.count = el("span", { class: "gw-badge", hidden: true });
  }

  render(model) {
    if (this.incidents !== model.incidents || this.layout !== model.layout) {
      [this.incidents, this.layout] = [model.incidents, model.layout];
      this.#build(model);
    }
    for (const item of this.list.querySelectorAll("[data-testid=gw-incident]")) {
      const layer = model.layerOf(item.dataset.layer) ?? model.layer;
      item.classList.toggle("gw-selected", layer === model.layer && Number(item.dataset.step) === model.step);
    }
  }

  #build(model) {
    const { incidents } = model;
    this.count.hidden = !incidents?.length;
    this.count.textContent = count(incidents?.length ?? 0);
    if (!incidents) return this.list.replaceChildren();
    if (!incidents.length) {
      const text = `Nothing was found in ${plural(model.records, "record")}.`;
      return this.list.replaceChildren(
        el("li", { class: "gw-nothing", test: "gw-nothing-found" }, icon("check"), el("span", { text })),
      );
    }
    const open = new Set([...this.list.querySelectorAll("details[open]")].map((details) => details.dataset.key));
    return this.list.replaceChildren(...incidents.map((incident, index) => this.#incident(incident, index + 1, model, open)));
  }

  #incident({ cause, consequences }, position, model, open) {
    const go = () => this.app.select(cause.layer, cause.first_step);
    const lasts = cause.last_step >= model.last - model.slack;
    const item = el(
      "li",
      {
        class: `gw-incident gw-${cause.severity}`,
        test: "gw-incident",
        data: { layer: cause.layer, step: cause.first_step },
        on: {
          click: (event) => {
            if (!event.target.closest("details, button") && !window.getSelection()?.toString()) go();
          },
        },
      },
      el(
        "button",
        { type: "button", class: "gw-incident-head", on: { click: go } },
        el("span", { class: `gw-number gw-${cause.severity}`, text: position }),
        el("span", { class: "gw-kind", text: title(cause.kind) }),
        el("span", { class: `gw-severity gw-${cause.severity}`, text: cause.severity }),
      ),
      el(
        "p",
        { class: "gw-where" },
        el("code", { class: "gw-name", text: cause.layer }),
        el("span", {
          class: "gw-muted",
          text: lasts ? `since step ${count(cause.first_step)}` : `${span(cause.first_step, cause.last_step)}, over`,
        }),
      ),
      el("p", { class: "gw-message", text: sentence(cause.message) }),
      cause.advice ? el("p", { class: "gw-advice" }, el("b", { text: "Try" }), ` `, el("span", { text: cause.advice })) : null,
    );
    const evidence = Object.entries(cause.evidence ?? {});
    if (evidence.length) item.append(this.#details(`evidence ${position}`, open, "Evidence", figures(evidence)));
    if (consequences.length) {
      const text = `Therefore ${plural(consequences.length, "more finding")}`;
      item.append(this.#details(`consequences ${position}`, open, text, this.#consequences(consequences)));
    }
    return item;
  }

  #details(key, open, summary, content) {
    return el("details", { data: { key }, open: open.has(key) }, el("summary", { text: summary }), content);
  }

  #consequences(findings) {
    const buttons = findings.slice(0, SHOWN).map((finding) =>
      el(
        "button",
        {
          type: "button",
          class: "gw-consequence",
          title: finding.message,
          on: { click: () => this.app.select(finding.layer, finding.first_step) },
        },
        el("span", { class: `gw-dot gw-${finding.severity}` }),
        el("span", { text: title(finding.kind) }),
        el("code", { class: "gw-name", text: finding.layer }),
        el("span", { class: "gw-muted", text: span(finding.first_step, finding.last_step) }),
      ),
    );
    const rest = findings.length - SHOWN;
    return el("div", {}, ...buttons, rest > 0 ? el("p", { class: "gw-muted", text: `and ${count(rest)} more` }) : null);
  }
}

/** Evidence as pairs; what JSON has no number for comes as a word. */
function figures(evidence) {
  return el(
    "dl",
    { class: "gw-evidence" },
    ...evidence.flatMap(([name, value]) => [
      el("dt", { text: name.replaceAll("_", " ") }),
      el("dd", { text: typeof value === "number" ? number(value, 4) : value }),
    ]),
  );
}
