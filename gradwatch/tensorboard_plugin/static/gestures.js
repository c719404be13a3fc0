// Pointer, wheel and keys over the heat-map and its tracks.

const ZOOM = 0.7;
const DRAG_FROM = 4;

/** Over the cells: hover, click, drag to zoom in, Shift and drag to pan, wheel. */
export function cells(heat, app) {
  let drag = null;
  const { plot } = heat;

  plot.addEventListener("pointermove", (event) => {
    if (drag) return moved(event);
    const under = heat.under(event.clientX, event.clientY);
    const mark = under && heat.markAt(under);
    plot.style.cursor = mark ? "pointer" : "";
    heat.point(under);
    if (under) app.tooltip.show(event.clientX, event.clientY, ...heat.describe(under, mark));
    else app.tooltip.hide();
  });

  plot.addEventListener("pointerleave", () => {
    heat.point(null);
    app.tooltip.hide();
  });

  plot.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const under = heat.under(event.clientX, event.clientY);
    if (!under) return;
    drag = { under, x: under.x, from: heat.steps.from, pans: event.shiftKey, moved: false };
    plot.setPointerCapture(event.pointerId);
  });

  function moved(event) {
    const x = Math.min(heat.width, Math.max(0, event.clientX - plot.getBoundingClientRect().left));
    drag.moved ||= Math.abs(x - drag.x) >= DRAG_FROM;
    if (!drag.moved) return;
    app.tooltip.hide();
    const { from, to } = heat.steps;
    if (drag.pans) {
      const first = drag.from - Math.round(((x - drag.x) / heat.width) * (to + 1 - from));
      app.window(first, first + (to - from));
      return;
    }
    drag.to = x;
    heat.brush.hidden = false;
    heat.brush.style.transform = `translateX(${Math.min(drag.x, x)}px)`;
    heat.brush.style.width = `${Math.abs(x - drag.x)}px`;
  }

  plot.addEventListener("pointerup", () => {
    if (!drag) return;
    const { under, x, to, pans, moved: dragged } = drag;
    drag = null;
    heat.brush.hidden = true;
    if (dragged) {
      if (!pans) app.window(heat.steps.step(Math.min(x, to)), heat.steps.step(Math.max(x, to)));
      return;
    }
    const mark = heat.markAt(under);
    if (mark) app.select(mark.finding.layer, mark.finding.first_step);
    else app.point(under.row, under.step);
    heat.element.focus({ preventScroll: true });
  });

  plot.addEventListener("pointercancel", () => {
    drag = null;
    heat.brush.hidden = true;
  });

  plot.addEventListener("dblclick", () => app.window(null, null));

  plot.addEventListener(
    "wheel",
    (event) => {
      const { steps } = heat;
      if (event.ctrlKey || event.metaKey) {
        event.preventDefault();
        const x = event.clientX - plot.getBoundingClientRect().left;
        zoom(app, steps, event.deltaY > 0 ? 1 / ZOOM : ZOOM, steps.step(x));
      } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
        event.preventDefault();
        const by = Math.sign(event.deltaX || event.deltaY) * Math.max(1, Math.round((steps.to - steps.from) * 0.06));
        app.window(steps.from + by, steps.to + by);
      }
    },
    { passive: false },
  );
}

/** Zooms around a step. */
export function zoom(app, steps, factor, around) {
  const span = Math.max(4, Math.round((steps.to - steps.from) * factor));
  const share = (around - steps.from) / Math.max(1, steps.to - steps.from);
  const from = Math.round(around - share * span);
  app.window(from, from + span);
}

/** Dragging over a track above or below the cells moves the step. */
export function scrub(canvas, heat, app) {
  const go = (event) => app.scrub(heat.steps.step(event.offsetX));
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    go(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons & 1) go(event);
  });
}

/** The keys of the heat-map; what they do is said beside it. */
export function keys(heat, app) {
  heat.element.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const { steps, model } = heat;
    const pan = Math.max(1, Math.round((steps.to - steps.from) * 0.2));
    const along = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const down = { ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (along && event.shiftKey) app.window(steps.from + along * pan, steps.to + along * pan);
    else if (along) app.move(0, along);
    else if (down) app.move(down, 0);
    else if (event.key === "Home") app.scrub(steps.from);
    else if (event.key === "End") app.scrub(steps.to);
    else if (event.key === "+" || event.key === "=") zoom(app, steps, ZOOM, model.step);
    else if (event.key === "-") zoom(app, steps, 1 / ZOOM, model.step);
    else if (event.key === "0") app.window(null, null);
    else if (event.key === "Enter") app.enter();
    else if (event.key === " ") app.enter(true);
    else return;
    event.preventDefault();
  });
}
