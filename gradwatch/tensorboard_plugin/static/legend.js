// What the colours of the heat-map mean.
import { colorAt, css, specialColors } from "./colors.js";
import { el } from "./dom.js";
import { sentence } from "./format.js";

const STOPS = 24;

export class Legend {
  constructor() {
    this.element = el("div", { class: "gw-legend", test: "gw-legend" });
  }

  render(model) {
    const { scale, run, compare } = model.painter;
    const key = JSON.stringify([
      scale.kind,
      scale.low,
      scale.high,
      model.theme,
      model.statistic.id,
      compare,
      run,
      model.marks.length > 0,
    ]);
    if (this.key === key) return;
    this.key = key;
    const stops = Array.from({ length: STOPS + 1 }, (_, at) => css(colorAt(at / STOPS, scale.palette, model.theme)));
    const bar = el("div", { class: "gw-scale-bar" });
    bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    const marks = scale.marks().map(({ place, text }) => {
      const mark = el("span", { text });
      mark.style.left = `${place * 100}%`;
      return mark;
    });
    const special = specialColors(model.theme);
    const compared = scale.kind === "difference";
    const zero = compared ? "zero in one run" : "exactly zero";
    const swatches = [
      scale.kind === "log" || (compared && scale.statistic.scale === "log") ? swatch(css(special.zero), zero) : null,
      swatch(css(special.nan), "NaN"),
      swatch(css(special.inf), "infinite"),
      swatch(null, compared ? "not in both runs" : "not recorded", "gw-hatched"),
    ];
    const findings = model.marks.length
      ? [
          el(
            "span",
            { class: "gw-chip" },
            el("span", { class: "gw-number gw-critical", text: "1" }),
            el("span", { text: "critical" }),
          ),
          el(
            "span",
            { class: "gw-chip" },
            el("span", { class: "gw-number gw-warning", text: "1" }),
            el("span", { text: "warning" }),
          ),
          el("span", { class: "gw-chip" }, el("span", { class: "gw-pip" }), el("span", { text: "consequence" })),
        ]
      : [];
    const unit = compared ? `${run} against ${compare}` : sentence(model.statistic.title);
    this.element.replaceChildren(
      el(
        "div",
        { class: "gw-scale" },
        el("span", { class: "gw-scale-title", text: unit, title: unit }),
        el("div", { class: "gw-scale-box" }, bar, el("div", { class: "gw-scale-marks" }, ...marks)),
      ),
      el("div", { class: "gw-chips" }, ...swatches.filter(Boolean), ...findings),
    );
  }
}

function swatch(color, text, extra = "") {
  const made = el("i", { class: `gw-swatch gw-block ${extra}` });
  if (color) made.style.background = color;
  return el("span", { class: "gw-chip" }, made, el("span", { text }));
}
