// Numbers and names as people read them.

const TITLES = {
  vanishing_gradient: "Vanishing gradient",
  exploding_gradient: "Exploding gradient",
  non_finite: "Non-finite values",
  dead_units: "Dead units",
  saturated: "Saturated",
  zero_gradient: "Zero gradient",
  stale_gradient: "Stale gradient",
  not_updated: "Not updated",
  bad_scale: "Bad scale",
  update_ratio: "Update ratio",
  loss_stagnant: "Loss stagnant",
  loss_unstable: "Loss unstable",
};

/** What a cell holds when it is no ordinary number: the flags of the contract. */
export const FLAG = { value: 0, none: 1, nan: 2, inf: 3, zero: 4, negativeInf: 5 };

const WORDS = ["", "not recorded", "NaN", "Infinity", "0 (exactly)", "−Infinity"];

/** A finding's kind as a title. */
export function title(kind) {
  const text = TITLES[kind] ?? String(kind).replaceAll("_", " ");
  return sentence(text);
}

/** With a capital at its beginning; a symbol such as dL keeps its own. */
export function sentence(text) {
  return /^\p{Ll}(?!\p{Lu})/u.test(text) ? text.charAt(0).toUpperCase() + text.slice(1) : text;
}

/** A number with so many significant digits: 0.0123, 1,230, 3.21e-5. */
export function number(value, digits = 3) {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "Infinity" : "−Infinity";
  if (value === 0) return "0";
  const size = Math.abs(value);
  let text;
  if (size < 1e-3 || size >= 1e5)
    text = value
      .toExponential(digits - 1)
      .replace(/\.?0+e/, "e")
      .replace("e+", "e");
  else if (Number.isInteger(value)) text = GROUPED.format(value);
  else text = String(Number(value.toPrecision(digits)));
  return text.replace(/^-/, "−");
}

/** A statistic's value with its flag; shares in per cent. */
export function cellText(value, flag, scale, digits = 3) {
  if (scale === "share" && flag === FLAG.zero) return "0 %";
  if (flag !== FLAG.value) return WORDS[flag];
  return scale === "share" ? `${number(value * 100, digits)} %` : number(value, digits);
}

const GROUPED = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

/** 1234 → "1,234". */
export function count(value) {
  return GROUPED.format(value);
}

/** "1 layer", "2 layers". */
export function plural(value, noun) {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}

/** "step 7" or "steps 7–19". */
export function span(first, last) {
  return last > first ? `steps ${count(first)}–${count(last)}` : `step ${count(first)}`;
}

const RAISED = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

/** The exponent −5 → "10⁻⁵". */
export function power(exponent) {
  return `10${[...String(exponent)].map((char) => RAISED[char]).join("")}`;
}
