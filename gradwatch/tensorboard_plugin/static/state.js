// What a link holds.
const KEYS_OF_STATE = ["run", "compare", "statistic", "layer", "step", "from", "to"];
const NUMBERS_OF_STATE = ["step", "from", "to"];

/** A state as a host gives it, an object or a query string, with nothing in it that is not known. */
export function readState(given) {
  const found = typeof given === "string" ? Object.fromEntries(new URLSearchParams(given)) : { ...given };
  const state = {};
  for (const key of KEYS_OF_STATE) {
    if (found[key] === undefined || found[key] === null || found[key] === "") continue;
    state[key] = NUMBERS_OF_STATE.includes(key) ? Math.round(Number(found[key])) : String(found[key]);
    if (Number.isNaN(state[key])) delete state[key];
  }
  // Half a window is none.
  if (!(state.from < state.to)) for (const key of ["from", "to"]) delete state[key];
  return state;
}

/** The part of a state that is known, for a link. */
export function known(state) {
  return Object.fromEntries(KEYS_OF_STATE.filter((key) => state[key] !== undefined).map((key) => [key, state[key]]));
}
