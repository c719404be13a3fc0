// What the source has said, and which of its answers are still wanted.

const GRIDS_KEPT = 8;

/** Asks for what is wanted, once; an answer that came too late is dropped. */
export class Answers {
  /**
   * @param source of the contract
   * @param changed called when an answer, or an error, has arrived
   */
  constructor(source, changed) {
    this.source = source;
    this.changed = changed;
    this.news = 0;
    this.wanted = new Map();
    this.values = new Map();
    this.errors = new Map();
    this.grids = new Map();
    this.pending = 0;
  }

  /** Asks for the runs again, and for what could not be answered; the old picture stands until the new one is there. */
  renew() {
    this.news++;
    for (const name of this.errors.keys()) this.wanted.delete(name);
  }

  /** What tells a run from itself after it has grown: an answer about it is as good as the run is old. */
  version(run) {
    const found = this.get("runs")?.find(({ name }) => name === run);
    return found ? `${found.lastStep} ${found.wallTime}` : "";
  }

  /** The newest answer of that name; undefined before the first. */
  get(name) {
    return this.values.get(name);
  }

  /** Whether the newest answer of that name is to the newest question. */
  settled(name) {
    return !this.wanted.has(name) || this.wanted.get(name).done;
  }

  /**
   * Wants an answer under a name.
   *
   * @param name of the slot
   * @param key of the question: the same key is not asked twice
   * @param ask function that returns a promise
   * @param delay milliseconds to wait whether the question changes again
   */
  want(name, key, ask, delay = 0) {
    const signature = JSON.stringify(key);
    if (this.wanted.get(name)?.signature === signature) return;
    const question = { signature, done: false };
    this.wanted.set(name, question);
    this.#answer(name, question, ask, delay);
  }

  /** Wants nothing under a name any more. */
  drop(name) {
    this.wanted.delete(name);
    this.values.delete(name);
    this.errors.delete(name);
  }

  /** Forgets all answers about a run. */
  forget() {
    for (const name of [...this.wanted.keys()]) if (name !== "runs") this.drop(name);
  }

  async #answer(name, question, ask, delay) {
    const current = () => this.wanted.get(name) === question;
    this.pending++;
    try {
      if (delay) await new Promise((resume) => setTimeout(resume, delay));
      if (!current()) return;
      const value = await ask();
      if (!current()) return;
      this.values.set(name, value);
      this.errors.delete(name);
    } catch (error) {
      if (current()) this.errors.set(name, error);
    } finally {
      question.done = true;
      this.pending--;
      this.changed(name);
    }
  }

  /** A grid of the source; asked once for all who want the same. */
  grid(run, statistic, options) {
    const key = JSON.stringify([run, this.version(run), statistic, options]);
    if (!this.grids.has(key)) {
      if (this.grids.size >= GRIDS_KEPT) this.grids.delete(this.grids.keys().next().value);
      const asked = this.source.grid(run, statistic, options);
      this.grids.set(key, asked);
      asked.catch(() => this.grids.delete(key));
    }
    return this.grids.get(key);
  }
}
