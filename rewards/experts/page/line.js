// Asking with words: while nobody answers the page says so, and a token that is no longer taken ends the page.

import { Refused } from "./api.js";
import * as view from "./view.js";

const OFFLINE = "No connection to the service. Trying again …";
const BUSY = "The service is busy. Trying again in a moment …";

export class Line {
  #api;
  #onClosed;

  /** `onClosed()` is called before the page ends. */
  constructor(api, onClosed) {
    this.#api = api;
    this.#onClosed = onClosed;
  }

  /** The answer, however long it takes. Throws a refusal, unless it is of the token: nothing follows on a closed page. */
  async insist(method, path, body, words = OFFLINE) {
    let troubled = false;
    try {
      const answer = await this.#api.insist(method, path, body, (problem) => {
        const line = problem instanceof Refused ? BUSY : words;
        if (!troubled) view.alertAloud(line);
        troubled = true;
        view.banner(line, { tone: "warn" });
      });
      if (troubled) view.say("The connection is back.");
      return answer;
    } catch (problem) {
      if (!this.closedBy(problem)) throw problem;
      return new Promise(() => {});
    } finally {
      if (troubled) view.noBanner();
    }
  }

  /** Ends the page when the refusal is of the token; whether it was. */
  closedBy(problem) {
    if (!(problem instanceof Refused && problem.isOfToken)) return false;
    this.#onClosed();
    view.closeByRefusal(problem);
    return true;
  }
}
