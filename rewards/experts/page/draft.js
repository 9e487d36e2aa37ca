// Saves the draft of the item in work: a moment after the last change, one request at a time, again until it is through.

import { Refused, Unreachable, pause } from "./api.js";

const QUIET_MS = 700;

export class DraftSaver {
  #api;
  #read;
  #tell;
  #timer = null;
  #dirty = false;
  #running = null;
  #round = 0;

  /**
   * `read()` gives the body of the request, or null when there is nothing to save. `tell` has `saving()`, `saved(expiresS)`,
   * `offline(problem)` and `refused(problem)`.
   */
  constructor(api, read, tell) {
    this.#api = api;
    this.#read = read;
    this.#tell = tell;
  }

  /** Something changed: save soon. */
  touch() {
    this.#dirty = true;
    this.#tell.saving();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.flush(), QUIET_MS);
  }

  /** Save now, also when nothing changed (it renews the lease). Resolves when saved or given up. */
  async flush() {
    clearTimeout(this.#timer);
    this.#dirty = true;
    if (this.#running === null) {
      const run = this.#run(this.#round).finally(() => {
        if (this.#running === run) this.#running = null;
      });
      this.#running = run;
    }
    await this.#running;
  }

  /** The item is done with: forget what was still to be saved. Answers on their way are ignored. */
  stop() {
    clearTimeout(this.#timer);
    this.#dirty = false;
    this.#round += 1;
    this.#running = null;
  }

  /** The page goes away: a last request that outlives it. Its answer is nobody's business. */
  farewell() {
    const body = this.#read();
    if (!this.#dirty || body === null) return;
    this.#api.ask("PUT", "/api/draft", body, { keepalive: true }).catch(() => {});
  }

  async #run(round) {
    for (let tries = 0; this.#dirty && round === this.#round; ) {
      const body = this.#read();
      if (body === null) return;
      this.#dirty = false;
      try {
        const { expires_s: expiresS } = await this.#api.ask("PUT", "/api/draft", body);
        if (round !== this.#round) return;
        tries = 0;
        this.#tell.saved(expiresS);
      } catch (problem) {
        if (round !== this.#round) return;
        const busy = problem instanceof Refused && problem.status === 429;
        if (!busy && !(problem instanceof Unreachable)) {
          this.#tell.refused(problem);
          return;
        }
        this.#dirty = true;
        tries += 1;
        if (!busy) this.#tell.offline(problem);
        await pause(busy ? problem.retryAfterS : Math.min(2 ** (tries - 1), 10));
      }
    }
  }
}
