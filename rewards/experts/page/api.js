// The way to the service: one small class round fetch, and the two ways in which asking can fail.

/** The service understood and said no. `status` is the HTTP status, the message is the service's line for people. */
export class Refused extends Error {
  constructor(status, message, retryAfterS) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }

  /** The token is not known, has run out, or was shut out. */
  get isOfToken() {
    return this.status === 401 || this.status === 403;
  }

  /** What was asked for is not the asker's any more, or is not known. */
  get isGone() {
    return this.status === 409 || this.status === 404;
  }
}

/** Nobody answered, or the service is in trouble: worth trying again with the very same request. */
export class Unreachable extends Error {}

const PATIENCE_MS = 40_000;
const LONGEST_PAUSE_S = 10;

export class Api {
  /** `token` comes from the link's fragment: it is sent in a header only, never in an address. */
  constructor(token) {
    this.token = token;
  }

  /** The raw answer, for downloads. Throws Refused or Unreachable. `keepalive` lets a request outlive the page. */
  async fetch(method, path, body, { keepalive = false } = {}) {
    const headers = { Authorization: `Bearer ${this.token}` };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(path, {
        method,
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
        cache: "no-store",
        credentials: "omit",
        keepalive,
        signal: AbortSignal.timeout(PATIENCE_MS),
      });
    } catch {
      throw new Unreachable("The service does not answer.");
    }
    if (answer.status >= 500) throw new Unreachable("The service is in trouble.");
    if (!answer.ok) throw new Refused(answer.status, await said(answer), retryAfter(answer));
    return answer;
  }

  /** Ask once: the JSON of the answer. */
  async ask(method, path, body, options) {
    const answer = await this.fetch(method, path, body, options);
    try {
      return await answer.json();
    } catch {
      throw new Unreachable("The answer was cut off.");
    }
  }

  /**
   * Ask until somebody answers: the same request again after 1, 2, 4 ... seconds, sooner when the network comes back.
   * `onTrouble(problem, tries)` is told of every failed try. Only a refusal that waiting cannot cure is thrown.
   */
  async insist(method, path, body, onTrouble = () => {}) {
    for (let tries = 1; ; tries += 1) {
      try {
        return await this.ask(method, path, body);
      } catch (problem) {
        const busy = problem instanceof Refused && problem.status === 429;
        if (!busy && !(problem instanceof Unreachable)) throw problem;
        onTrouble(problem, tries);
        await pause(busy ? problem.retryAfterS : Math.min(2 ** (tries - 1), LONGEST_PAUSE_S));
      }
    }
  }
}

async function said(answer) {
  try {
    const { error } = await answer.json();
    if (typeof error === "string" && error) return error;
  } catch {
    // not ours: a proxy between the page and the service may answer in its own words
  }
  return `The service refused (${answer.status}).`;
}

function retryAfter(answer) {
  const seconds = Number(answer.headers.get("Retry-After"));
  return seconds > 0 ? Math.min(seconds, 60) : 2;
}

/** Resolves after `seconds`, or as soon as the browser finds the network again. */
export function pause(seconds) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      window.removeEventListener("online", done);
      resolve();
    };
    const timer = setTimeout(done, seconds * 1000);
    window.addEventListener("online", done);
  });
}
