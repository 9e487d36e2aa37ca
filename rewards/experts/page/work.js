// The item in work: its form, its draft, its lease and its time. It knows nothing of what comes before or after.

import { byId } from "./dom.js";
import { DraftSaver } from "./draft.js";
import { isTouched } from "./form.js";
import { LeaseClock, asClock } from "./lease.js";
import { newId } from "./memory.js";
import * as view from "./view.js";

const SIGNS_OF_LIFE = ["pointermove", "pointerdown", "keydown", "wheel", "touchmove"];

export class Work {
  item = null; // {lease, turns, reply, sensitive} as the service gave it; null between items
  #memory;
  #form;
  #page;
  #saver;
  #lease;
  #submission = null;
  #revealed = false;
  #seconds = 0; // in which the text was to be seen, up to #since
  #since = null;
  #toldSaved = false;
  #toldOffline = false;

  /**
   * `page` has: `busy`, true while the item is being sent or left; `lost(problem)`, it belongs to somebody else;
   * `refused(problem)`, any other refusal; `giveUp()`, the rater lets it go.
   */
  constructor(api, memory, form, page) {
    this.#memory = memory;
    this.#form = form;
    this.#page = page;
    this.#saver = new DraftSaver(api, () => (this.item === null ? null : { lease: this.item.lease, ...form.read() }), {
      saving: () => this.state("Saving …"),
      saved: (expiresS) => this.#saved(expiresS),
      offline: () => this.#offline(),
      refused: (problem) => this.#refused(problem),
    });
    this.#lease = new LeaseClock({ near: (left) => this.#near(left), far: view.noBanner, over: () => this.#over() });
    this.#listen();
  }

  /** Takes an item, and what is remembered of it: this browser's draft is at least as new as the service's. */
  open(item, { takenBack }) {
    const kept = this.#memory.item(item.lease);
    this.item = item;
    this.#submission = kept?.submission ?? newId();
    this.#seconds = kept?.seconds ?? 0;
    this.#revealed = kept?.shown ?? takenBack;
    this.#since = null;
    this.#toldSaved = false;
    const draft = kept?.draft ?? item.draft;
    this.#form.write(draft);
    this.state(draft ? "Draft restored" : "");
    this.#lease.set(item.expires_s, { fresh: true });
  }

  /** Whether the rater should be warned before the text is shown. */
  get needsWarning() {
    return this.item.sensitive && !this.#revealed;
  }

  /** The text is to be seen from here on. */
  reveal() {
    this.#revealed = true;
    this.#since = document.hidden ? null : Date.now();
    // Kept in this browser and perhaps not by the service: the page may have been closed before it was sent.
    if (this.#memory.item(this.item.lease)?.draft) this.#saver.touch();
    this.remember();
  }

  /** The rater changed something. */
  changed() {
    if (this.item === null) return;
    this.remember();
    this.#saver.touch();
  }

  get touched() {
    return this.item !== null && isTouched(this.#form.read());
  }

  /** Saves the draft now and renews the lease. */
  save() {
    return this.#saver.flush();
  }

  /** The rating as it is sent; from here on the draft is not saved any more. */
  finish() {
    this.#saver.stop();
    this.state("Sending …");
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
    this.state("");
    this.remember();
  }

  /** No draft of it is to be sent any more, whatever becomes of it. */
  hush() {
    this.#saver.stop();
  }

  /** It is rated, skipped, lost or left. */
  close() {
    this.#saver.stop();
    this.#lease.stop();
    this.#memory.dropItem();
    this.item = null;
    this.#since = null;
  }

  /** The page ends here. What is remembered stays, should the rater come back. */
  suspend() {
    this.#saver.stop();
    this.#lease.stop();
  }

  remember() {
    const draft = this.#form.read();
    this.#memory.keepItem({
      lease: this.item.lease,
      draft: isTouched(draft) ? draft : null,
      submission: this.#submission,
      seconds: this.#secondsSoFar(),
      shown: this.#revealed,
    });
  }

  state(text, tone = "") {
    byId("save-state").textContent = text;
    byId("save-state").dataset.tone = tone;
  }

  #secondsSoFar() {
    return this.#seconds + (this.#since === null ? 0 : (Date.now() - this.#since) / 1000);
  }

  // ------------------------------------------------------------------ draft

  #saved(expiresS) {
    this.#lease.set(expiresS);
    this.#toldOffline = false;
    if (!this.touched) return this.state(""); // the lease was renewed, there is no draft yet
    this.state("Draft saved", "good");
    if (!this.#toldSaved) view.say("Draft saved.");
    this.#toldSaved = true; // once for each reply: a word after every key would drown the slider's own
  }

  #offline() {
    this.state("Offline – kept in this browser, trying again", "warn");
    if (this.#toldOffline) return;
    this.#toldOffline = true;
    view.alertAloud("No connection. What you enter is kept in this browser and saved as soon as the connection is back.");
  }

  #refused(problem) {
    if (problem.isGone) return this.#page.lost(problem);
    this.state("Not saved", "warn");
    this.#page.refused(problem);
  }

  // ------------------------------------------------------------------ lease

  #near(left) {
    if (this.#page.busy) return; // it is being sent: the banner speaks of that
    const words = `This reply goes back to the queue in ${asClock(left)}, unless you go on.`;
    if (byId("banner").hidden) view.alertAloud(words);
    view.banner(words, { tone: "warn", actions: [["Keep it", () => this.save()]] });
  }

  #over() {
    if (this.#page.busy) return;
    const words = "The time for this reply is over, and another rater may be given it. What you entered is still here.";
    view.alertAloud(words);
    view.banner(words, { tone: "warn", actions: [["Try to keep it", () => this.save()], ["Next reply", () => this.#page.giveUp()]] });
  }

  /** Somebody is here: a lease in use is renewed long before it ends. */
  #alive() {
    if (this.item !== null && !this.#page.busy && this.#lease.wantsRenewal) this.save();
  }

  #listen() {
    for (const sign of SIGNS_OF_LIFE) document.addEventListener(sign, () => this.#alive(), { passive: true });
    window.addEventListener("pagehide", () => this.#saver.farewell());
    document.addEventListener("visibilitychange", () => {
      if (this.item === null || this.needsWarning) return;
      if (document.hidden) {
        this.#seconds = this.#secondsSoFar();
        this.#since = null;
        this.#saver.farewell();
      } else {
        this.#since = Date.now();
        this.#alive();
      }
      this.remember();
    });
  }
}
