// Elements, text and canvases. Names and messages come from files: they enter the page as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

const ACTING = /[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/gu;

/** One line on which nothing acts: control, format (bidirectional) and unpaired characters appear as escapes. */
export function shown(text) {
  return String(text).replace(ACTING, (char) => {
    const code = char.codePointAt(0);
    if (code < 0x100) return `\\x${code.toString(16).padStart(2, "0")}`;
    return code < 0x10000 ? `\\u${code.toString(16).padStart(4, "0")}` : `\\U${code.toString(16).padStart(8, "0")}`;
  });
}

/**
 * An element. `options`: `class`, `text` (shown as it is, but for characters that act), `test` (data-testid), `data` (dataset),
 * `on` (event → listener); everything else is an attribute, left out where it is null or false.
 */
export function el(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") made.className = value;
    else if (name === "text") made.textContent = shown(value);
    else if (name === "test") made.dataset.testid = value;
    else if (name === "data") Object.assign(made.dataset, value);
    else if (name === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Gives an element its text, already fit to be shown; one that has it is left alone, for writing it again costs a layout. */
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const ICONS = {
  chevron: "M6 4l4 4-4 4",
  plus: "M8 3v10M3 8h10",
  minus: "M3 8h10",
  reset: "M2.5 8h11M5 5L2 8l3 3M11 5l3 3-3 3",
  fold: "M3 8h10M5 2l3 3 3-3M5 14l3-3 3 3",
  unfold: "M3 8h10M5 5l3-3 3 3M5 11l3 3 3-3",
  rows: "M3 3.5h10M3 6.5h10M3 9.5h10M3 12.5h10",
  play: "M5 3.2v9.6L12.5 8z",
  pause: "M5.5 3v10M10.5 3v10",
  link: "M6.5 9.5l3-3M5 7L3.6 8.4a2.8 2.8 0 004 4L9 11M11 9l1.4-1.4a2.8 2.8 0 00-4-4L7 5",
  check: "M3 8.5l3.2 3.2L13 5",
  search: "M7 11.5a4.5 4.5 0 100-9 4.5 4.5 0 000 9zM10.4 10.4L14 14",
  close: "M4 4l8 8M12 4l-8 8",
};

/** A 16 × 16 line drawing, hidden from screen readers. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  for (const [key, value] of Object.entries({ viewBox: "0 0 16 16", class: "gw-icon", "aria-hidden": "true" }))
    svg.setAttribute(key, value);
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A button with an icon, named for screen readers and in its tooltip. */
export function iconButton(name, label, click, test = null) {
  return el(
    "button",
    { type: "button", class: "gw-button gw-square", "aria-label": label, title: label, test, on: { click } },
    icon(name),
  );
}

/** A labelled select; `choose` gets the value. */
export function select(label, test, choose) {
  const box = el("select", { test, on: { change: () => choose(box.value) } });
  return { box, field: el("label", { class: "gw-field" }, el("span", { text: label }), box) };
}

/** Gives a select its options, (value, text, group or null) each; it may be open, and is left alone where they are the same. */
export function fill(box, options, value) {
  const signature = JSON.stringify(options);
  if (box.dataset.signature !== signature) {
    box.dataset.signature = signature;
    box.replaceChildren();
    let group = null;
    for (const [key, text, label = null] of options) {
      if (label === null) group = null;
      else if (group?.label !== label) box.append((group = el("optgroup", { label })));
      (group ?? box).append(el("option", { value: key, text }));
    }
  }
  box.value = value;
}

/** A 2D context of which one unit is a CSS pixel, cleared; null while the canvas has no size (a hidden tab). */
export function context(canvas, width, height) {
  if (!(width > 0 && height > 0)) return null;
  const ratio = window.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const ctx = canvas.getContext("2d");
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.clearRect(0, 0, width, height);
  return ctx;
}

/** The part of a text that fits, with an ellipsis where something had to go. */
export function fitted(ctx, text, width) {
  if (ctx.measureText(text).width <= width) return text;
  let [low, high] = [0, text.length];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (ctx.measureText(`${text.slice(0, middle)}…`).width <= width) low = middle;
    else high = middle - 1;
  }
  return low ? `${text.slice(0, low)}…` : "";
}

/** Calls `listener` once per frame at most, however often the returned function is called. */
export function perFrame(listener) {
  let waiting = 0;
  return () => {
    waiting ||= requestAnimationFrame(() => {
      waiting = 0;
      listener();
    });
  };
}

/** A box with figures that follows the pointer and stays inside the window. */
export class Tooltip {
  constructor(root) {
    this.box = el("div", { class: "gw-tooltip", test: "gw-tooltip", role: "presentation", hidden: true });
    root.append(this.box);
  }

  show(x, y, ...children) {
    this.box.replaceChildren(...children.filter(Boolean));
    this.box.hidden = false;
    const { width, height } = this.box.getBoundingClientRect();
    const left = x + 16 + width > window.innerWidth ? x - 16 - width : x + 16;
    const top = y + 16 + height > window.innerHeight ? y - 12 - height : y + 16;
    this.box.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
  }

  hide() {
    this.box.hidden = true;
  }
}
