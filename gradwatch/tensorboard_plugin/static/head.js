// The words above the parts of the page, and what can be chosen there.
import { el, fill, put, shown } from "./dom.js";
import { count, plural, sentence, span } from "./format.js";
import { FLOWS } from "./wanted.js";

/** Runs, statistics, and what is said of the run. */
export function showHead(page, model, host, runs) {
  const names = runs.map(({ name }) => [name, shown(name)]);
  fill(page.run, names, model.run);
  fill(page.compare, [["", "nothing"], ...names.filter(([name]) => name !== model.run)], model.compare ?? "");
  page.compare.disabled = runs.length < 2;
  page.share.hidden = !host.shareUrl;
  const notes = model.layout?.notes ?? [];
  page.notes.hidden = !notes.length;
  if (page.notes.dataset.said !== notes.join()) {
    page.notes.dataset.said = notes.join();
    page.notes.replaceChildren(...notes.map((text) => el("p", { text })));
  }
  put(page.summary, model.layout ? `${plural(model.records, "record")}, ${span(model.first, model.last)}` : "");
  if (!model.layout) return;
  const { statistics } = model.layout;
  const option = ({ id, title, tensor }) => [id, sentence(shown(title)), id.includes(".") ? `More of ${shown(tensor)}` : null];
  fill(page.statistic, statistics.map(option), model.chosen?.id ?? "");
  fill(
    page.aggregate,
    [
      ["worst", "the worst layer"],
      ["median", "the median"],
    ],
    model.aggregate,
  );
  const flows = statistics.filter(({ id, scale }) => FLOWS.includes(id) && scale === "log");
  fill(page.flow, flows.map(option), model.flow?.statistic.id ?? flows[0]?.id ?? "");
}

/** What is said of the statistic, the layer and the rows. */
export function showState(page, model, layers) {
  const without = model.layout.layers.length - model.tree.layers.length;
  const left = without ? ` ${plural(without, "layer")} without it ${without === 1 ? "is" : "are"} left out.` : "";
  put(page.describe, shown(model.statistic.describe ?? "") + left);
  put(page.selected, shown(model.layer ?? ""));
  put(page.selectedType, shown(model.layout.layers.find(({ name }) => name === model.layer)?.type ?? ""));
  put(page.found, model.query ? count(model.rows.filter(({ kind }) => kind === "layer").length) : "");
  put(page.layersCount, layers);
  page.zoomReset.disabled = model.from === model.first && model.to === model.last;
}
