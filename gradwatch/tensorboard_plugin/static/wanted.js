// What has to be asked for a state.
import { layerOf, painterOf, statisticOf } from "./model.js";

const DETAIL_DELAY = 120;
const SERIES_DELAY = 60;

/** What a flow over depth can be made of; the first that was recorded is the one at first. */
export const FLOWS = ["gradient", "activation_grad", "activation", "update_ratio", "valve"];

/**
 * Asks for everything that is shown of a state; a state that names no run, or one that is gone, gets the newest.
 *
 * @param answers Answers
 * @param source of the contract
 * @param state run, compare, statistic, layer, from, to
 * @param look flow, opened
 * @param width of the heat-map in pixels; 0 while it has none
 */
export function want(answers, source, state, look, width) {
  answers.want("runs", [answers.news], () => source.runs());
  const runs = answers.get("runs");
  if (!runs?.length) return;
  if (!runs.some(({ name }) => name === state.run)) state.run = newest(runs).name;
  if (!runs.some(({ name }) => name === state.compare) || state.compare === state.run) state.compare = undefined;
  const { run } = state;
  if (answers.run !== run) answers.forget();
  answers.run = run;
  const version = answers.version(run);
  for (const name of ["layout", "incidents", "loss"]) answers.want(name, [run, version], () => source[name](run));
  const layout = answers.get("layout");
  // The grids of a run that grew are those up to its new end.
  if (!layout?.statistics.length || !answers.settled("layout")) return;
  if (!width || !wantGrids(answers, layout, state, look, width)) return;
  answers.want("table", [run, version], () => source.table(run));
  const layer = layerOf(state, layout, answers.get("incidents"));
  if (layer !== undefined) answers.want("series", [run, version, layer], () => source.series(run, layer), SERIES_DELAY);
}

function newest(runs) {
  return runs.reduce((one, other) => ((other.wallTime ?? 0) > (one.wallTime ?? 0) ? other : one));
}

/** Asks for the heat-map, and when it is there for what is drawn in its colours or below it; returns whether it is. */
function wantGrids(answers, layout, state, look, width) {
  const { run, compare } = state;
  const statistic = statisticOf(layout, state.statistic);
  const whole = { run, compare, width, from: layout.firstStep, to: layout.lastStep };
  const versions = [answers.version(run), answers.version(compare)];
  answers.want("base", [whole, versions, statistic.id], () => painterOf(answers, { ...whole, statistic }));
  // A source that answers one question at a time is asked for the picture first.
  if (!answers.settled("base")) return false;
  const flow = statisticOf(layout, look.flow ?? FLOWS.find((id) => layout.statistics.some((one) => one.id === id)));
  answers.want("flow", [whole, versions, flow.id], async () => {
    const of = async (name) =>
      name ? (await painterOf(answers, { ...whole, run: name, compare: undefined, statistic: flow })).grid : null;
    const [grid, other] = await Promise.all([of(run), of(compare)]);
    return { statistic: flow, grid, other, run, compare };
  });
  const base = answers.get("base");
  if (!base) return true;
  if (state.from !== undefined && base.grid.pooled) wantDetail(answers, layout, state, whole, versions, base.scale);
  else answers.drop("detail");
  for (const name of statistic.parameters ? look.opened : []) {
    const range = { ...whole, layer: name };
    answers.want(`parameters ${name}`, [range, versions, statistic.id], () =>
      painterOf(answers, { ...range, statistic, scale: base.scale }),
    );
  }
  return true;
}

function wantDetail(answers, layout, state, whole, versions, scale) {
  // Somewhat more than is seen, so that panning shows something at once; by quarters, so that it is not asked for every pixel.
  const quarter = Math.max(1, Math.ceil((state.to - state.from) / 4));
  const range = {
    from: Math.max(layout.firstStep, Math.floor(state.from / quarter) * quarter - quarter),
    to: Math.min(layout.lastStep, Math.ceil(state.to / quarter) * quarter + quarter),
  };
  const ask = async () =>
    Object.assign(await painterOf(answers, { ...whole, ...range, statistic: scale.statistic, scale }), { range });
  answers.want("detail", [whole, versions, range, scale.statistic.id], ask, DETAIL_DELAY);
}
