// The item in work: its form, its lease and its time. It knows nothing of what comes before or after.

import { byId } from "./dom.js";
import { LeaseClock, asClock } from "./lease.js";
import { newId } from "./memory.js";
import * as view from "./view.js";

const SIGNS_OF_LIFE = ["pointermove", "pointerdown", "keydown", "wheel", "touchmove"];

/** What raters' pages have in common; each adds how a lease is renewed and what becomes of a draft. */
export class ItemInWork {
  item = null; // {lease, turns, sensitive} and the texts, as the service gave it; null between items
  #one; // what an item is called
  #submission = null;
  #revealed = false;
  #seconds = 0; // in which the text was to be seen, up to #since
  #since = null;

  /**
   * `page` has: `busy`, true while the item is being sent or left; `lost(problem)`, it belongs to somebody else;
   * `refused(problem)`, any other refusal; `giveUp()`, the rater lets it go.
   */
  constructor(memory, form, page, one) {
    this.memory = memory;
    this.form = form;
    this.page = page;
    this.#one = one;
    this.clock = new LeaseClock({ near: (left) => this.#near(left), far: view.noBanner, over: () => this.#over() });
    this.#listen();
  }

  // ------------------------------------------------------------------ what a page adds

  /** Somebody is at work: asks for more time, and gives it to `clock`. */
  async renew() {
    throw new Error("a page says how its leases are renewed");
  }

  /** What the form begins with: this browser's draft is at least as new as the service's. */
  draftOf(item, kept) {
    return kept?.draft ?? item.draft ?? null;
  }

  /** The form holds `draft`, or nothing. */
  begun(draft) {}

  /** An earlier item will be taken back: what was entered on this one must come again after it. */
  async beforeUndo() {}

  /** An earlier item is taken back, and this one is left for now. */
  putAside() {}

  /** Nothing of it is to be sent any more, whatever becomes of it. */
  hush() {}

  /** The page may go away. */
  farewell() {}

  // ------------------------------------------------------------------ from the first look to the last

  /** Takes an item, with what is remembered of it, or with the answer that was taken back. */
  open(item, { takenBack }) {
    const kept = this.memory.item(item.lease);
    this.item = item;
    this.#submission = kept?.submission ?? newId();
    this.#seconds = kept?.seconds ?? 0;
    this.#revealed = kept?.shown ?? takenBack;
    this.#since = null;
    const draft = this.draftOf(item, kept);
    this.form.write(draft);
    this.begun(draft);
    this.clock.set(item.expires_s, { fresh: true });
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

  /** The rater changed something. */
  changed() {
    this.remember();
  }

  get touched() {
    return this.item !== null && this.form.isTouched(this.form.read());
  }

  /** The answer as it is sent. */
  finish() {
    this.hush();
    return {
      lease: this.item.lease,
      submission: this.#submission,
      ...this.form.read(),
      seconds: Math.round(this.#secondsSoFar() * 10) / 10,
    };
  }

  /** It was refused as it stands: the rater goes on, and what is sent next is another submission. */
  resume() {
    this.#submission = newId();
    this.remember();
  }

  /** It is answered, skipped, lost or left. */
  close() {
    this.suspend();
    this.memory.dropItem();
    this.item = null;
    this.#since = null;
  }

  /** The page ends here. What is remembered stays, should the rater come back. */
  suspend() {
    this.hush();
    this.clock.stop();
  }

  remember() {
    if (this.item === null) return;
    this.memory.keepItem({
      lease: this.item.lease,
      draft: this.touched ? this.form.read() : null,
      submission: this.#submission,
      seconds: this.#secondsSoFar(),
      shown: this.#revealed,
    });
  }

  #secondsSoFar() {
    return this.#seconds + (this.#since === null ? 0 : (Date.now() - this.#since) / 1000);
  }

  // ------------------------------------------------------------------ lease

  #near(left) {
    if (this.page.busy) return; // it is being sent: the banner speaks of that
    const words = `This ${this.#one} goes back to the queue in ${asClock(left)}, unless you go on.`;
    if (byId("banner").hidden) view.alertAloud(words);
    view.banner(words, { tone: "warn", actions: [["Keep it", () => this.renew()]] });
  }

  #over() {
    if (this.page.busy) return;
    const words = `The time for this ${this.#one} is over, and another rater may be given it. What you entered is still here.`;
    view.alertAloud(words);
    view.banner(words, { tone: "warn", actions: [["Try to keep it", () => this.renew()], [`Next ${this.#one}`, () => this.page.giveUp()]] });
  }

  /** Somebody is here: a lease in use is renewed long before it ends. */
  #alive() {
    if (this.item !== null && !this.page.busy && this.clock.wantsRenewal) this.renew();
  }

  #listen() {
    for (const sign of SIGNS_OF_LIFE) document.addEventListener(sign, () => this.#alive(), { passive: true });
    window.addEventListener("pagehide", () => {
      this.farewell();
      this.remember();
    });
    document.addEventListener("visibilitychange", () => {
      if (this.item === null || this.needsWarning) return;
      if (document.hidden) {
        this.#seconds = this.#secondsSoFar();
        this.#since = null;
        this.farewell();
      } else {
        this.#since = Date.now();
        this.#alive();
      }
      this.remember();
    });
  }
}
