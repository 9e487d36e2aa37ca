// The comparison in work: its form, its lease and its time. It knows nothing of what comes before or after.

import { Refused, Unreachable } from "./api.js";
import { byId } from "./dom.js";
import { isTouched } from "./compare_form.js";
import { LeaseClock, asClock } from "./lease.js";
import { newId } from "./memory.js";
import * as view from "./view.js";

const SIGNS_OF_LIFE = ["pointermove", "pointerdown", "keydown", "wheel", "touchmove"];

export class CompareWork {
  item = null; // {lease, turns, a, b, sensitive} as the service gave it; null between items
  #api;
  #memory;
  #form;
  #page;
  #lease;
  #submission = null;
  #revealed = false;
  #seconds = 0; // in which the text was to be seen, up to #since
  #since = null;
  #renewing = false;
  #aside = null; // what was entered on a pair that waits while an earlier one is taken back: {a, b, draft}

  /** `page` has: `busy`, true while the item is being sent or left; `lost(problem)`; `refused(problem)`; `giveUp()`. */
  constructor(api, memory, form, page) {
    this.#api = api;
    this.#memory = memory;
    this.#form = form;
    this.#page = page;
    this.#lease = new LeaseClock({ near: (left) => this.#near(left), far: view.noBanner, over: () => this.#over() });
    this.#listen();
  }

  /** Takes an item, with what this browser remembers of it, or with the answer that was taken back. */
  open(item, { takenBack }) {
    const kept = this.#memory.item(item.lease);
    this.item = item;
    this.#submission = kept?.submission ?? newId();
    this.#seconds = kept?.seconds ?? 0;
    this.#revealed = kept?.shown ?? takenBack;
    this.#since = null;
    const aside = this.#aside?.a === item.a && this.#aside.b === item.b ? this.#aside.draft : null;
    this.#form.write(kept?.draft ?? item.draft ?? aside);
    if (aside) this.#aside = null;
    this.#lease.set(item.expires_s, { fresh: true });
  }

  /** An earlier pair is taken back: this one comes again after it, under another lease, with what was entered. */
  putAside() {
    const draft = this.#form.read();
    if (this.item !== null && isTouched(draft)) this.#aside = { a: this.item.a, b: this.item.b, draft };
  }

  /** Whether the rater should be warned before the text is shown. */
  get needsWarning() {
    return this.item.sensitive && !this.#revealed;
  }

  /** The text is to be seen from here on. */
  reveal() {
    this.#revealed = true;
    this.#since = document.hidden ? null : Date.now();
    this.remember();
  }

  /** The judgement as it is sent. */
  finish() {
    return {
      lease: this.item.lease,
      submission: this.#submission,
      ...this.#form.read(),
      seconds: Math.round(this.#secondsSoFar() * 10) / 10,
    };
  }

  /** It was refused as it stands: the rater goes on, and what is sent next is another submission. */
  resume() {
    this.#submission = newId();
    this.remember();
  }

  /** It is judged, skipped, lost or left. */
  close() {
    this.#lease.stop();
    this.#memory.dropItem();
    this.item = null;
    this.#since = null;
  }

  /** The page ends here. What is remembered stays, should the rater come back. */
  suspend() {
    this.#lease.stop();
  }

  remember() {
    if (this.item === null) return;
    const draft = this.#form.read();
    this.#memory.keepItem({
      lease: this.item.lease,
      draft: isTouched(draft) ? draft : null,
      submission: this.#submission,
      seconds: this.#secondsSoFar(),
      shown: this.#revealed,
    });
  }

  #secondsSoFar() {
    return this.#seconds + (this.#since === null ? 0 : (Date.now() - this.#since) / 1000);
  }

  // ------------------------------------------------------------------ lease

  /** Keeps the item: the time starts anew. Where nobody answers, the next sign of life tries again. */
  async #renew() {
    if (this.#renewing || this.item === null) return;
    const { lease } = this.item;
    this.#renewing = true;
    try {
      const { expires_s: expiresS } = await this.#api.ask("POST", "/api/compare/renew", { lease });
      if (this.item?.lease === lease) this.#lease.set(expiresS);
    } catch (problem) {
      const mine = this.item?.lease === lease && !this.#page.busy;
      if (problem instanceof Refused && problem.isGone) {
        if (mine) this.#page.lost(problem);
      } else if (problem instanceof Refused && problem.status !== 429) this.#page.refused(problem);
      else if (!(problem instanceof Refused || problem instanceof Unreachable)) throw problem;
    } finally {
      this.#renewing = false;
    }
  }

  #near(left) {
    if (this.#page.busy) return; // it is being sent: the banner speaks of that
    const words = `This pair goes back to the queue in ${asClock(left)}, unless you go on.`;
    if (byId("banner").hidden) view.alertAloud(words);
    view.banner(words, { tone: "warn", actions: [["Keep it", () => this.#renew()]] });
  }

  #over() {
    if (this.#page.busy) return;
    const words = "The time for this pair is over, and another rater may be given it. What you entered is still here.";
    view.alertAloud(words);
    view.banner(words, { tone: "warn", actions: [["Try to keep it", () => this.#renew()], ["Next pair", () => this.#page.giveUp()]] });
  }

  /** Somebody is here: a lease in use is renewed long before it ends. */
  #alive() {
    if (this.item !== null && !this.#page.busy && this.#lease.wantsRenewal) this.#renew();
  }

  #listen() {
    for (const sign of SIGNS_OF_LIFE) document.addEventListener(sign, () => this.#alive(), { passive: true });
    window.addEventListener("pagehide", () => this.remember());
    document.addEventListener("visibilitychange", () => {
      if (this.item === null || this.needsWarning) return;
      if (document.hidden) {
        this.#seconds = this.#secondsSoFar();
        this.#since = null;
      } else {
        this.#since = Date.now();
        this.#alive();
      }
      this.remember();
    });
  }
}
