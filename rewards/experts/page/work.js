// The reply in work: its draft is saved with the service, which renews the lease too.

import { byId } from "./dom.js";
import { DraftSaver } from "./draft.js";
import { ItemInWork } from "./item_in_work.js";
import * as view from "./view.js";

export class RatingWork extends ItemInWork {
  #saver;
  #toldSaved = false;
  #toldOffline = false;

  constructor(api, memory, form, page, one) {
    super(memory, form, page, one);
    this.#saver = new DraftSaver(api, () => (this.item === null ? null : { lease: this.item.lease, ...form.read() }), {
      saving: () => this.state("Saving …"),
      saved: (expiresS) => this.#saved(expiresS),
      offline: () => this.#offline(),
      refused: (problem) => this.#refused(problem),
    });
  }

  begun(draft) {
    this.#toldSaved = false;
    this.state(draft ? "Draft restored" : "");
  }

  reveal() {
    // Kept in this browser and perhaps not by the service: the page may have been closed before it was sent.
    if (this.memory.item(this.item.lease)?.draft) this.#saver.touch();
    super.reveal();
  }

  changed() {
    if (this.item === null) return;
    super.changed();
    this.#saver.touch();
  }

  /** Saves the draft now and renews the lease. */
  renew() {
    return this.#saver.flush();
  }

  /** The service keeps the draft of the item in work, and gives it again after the one that is taken back. */
  async beforeUndo() {
    if (this.touched) await this.renew();
  }

  putAside() {
    this.hush();
  }

  finish() {
    this.state("Sending …");
    return super.finish();
  }

  resume() {
    this.state("");
    super.resume();
  }

  hush() {
    this.#saver.stop();
  }

  farewell() {
    this.#saver.farewell();
  }

  state(text, tone = "") {
    byId("save-state").textContent = text;
    byId("save-state").dataset.tone = tone;
  }

  #saved(expiresS) {
    this.clock.set(expiresS);
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
    if (problem.isGone) return this.page.lost(problem);
    this.state("Not saved", "warn");
    this.page.refused(problem);
  }
}
