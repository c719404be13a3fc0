// What the page asks for, fetched from TensorBoard. Addresses are relative to the frame's <base>, so that a path prefix holds.

export class HttpSource {
  /** @param reloaded (callback) → function that ends it; called when TensorBoard has read newer data */
  constructor(reloaded) {
    this.subscribe = reloaded;
  }

  runs() {
    return fetchJson("runs");
  }

  layout(run) {
    return fetchJson("layout", { run });
  }

  table(run) {
    return fetchJson("table", { run });
  }

  incidents(run) {
    return fetchJson("incidents", { run });
  }

  loss(run) {
    return fetchJson("loss", { run });
  }

  series(run, layer) {
    return fetchJson("series", { run, layer });
  }

  async grid(run, statistic, { from, to, width, layer } = {}) {
    const answer = await fetchOrSay("grid", { run, statistic, from, to, width, layer });
    return readGrid(await answer.arrayBuffer());
  }
}

async function fetchJson(route, query = {}) {
  return (await fetchOrSay(route, query)).json();
}

/** The answer; where there is none, or it is an error, throws a sentence. */
async function fetchOrSay(route, query) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
  const address = `${route}?${new URLSearchParams(given)}`;
  const answer = await fetch(address).catch(() => {
    throw new Error("TensorBoard does not answer; is it still running?");
  });
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new Error(told.error ?? `TensorBoard answered with status ${answer.status}.`);
}

/** Header length, header, values, flags, as routes.pack() writes them. */
function readGrid(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const cells = header.rows.length * header.columns;
  return {
    rows: header.rows,
    columns: header.columns,
    steps: Float64Array.from(header.steps),
    last: Float64Array.from(header.last),
    values: new Float32Array(buffer, 4 + length, cells),
    flags: new Uint8Array(buffer, 4 + length + 4 * cells, cells),
  };
}
