// The rating page: one reply at a time, judged on sliders.

import { byId, copyText } from "./dom.js";
import { RatingForm } from "./form.js";
import { RaterPage, begin } from "./rater_page.js";
import * as view from "./view.js";
import { RatingWork } from "./work.js";

const RATING = {
  title: "Rate replies",
  memory: "",
  paths: { me: "/api/me", next: "/api/next", send: "/api/ratings", skip: "/api/skip", undo: "/api/undo" },
  texts: { "reply-text": "reply" },
  formId: "rating",
  words: {
    one: "reply", many: "replies", verb: "rate", done: "rated", answer: "rating",
    stands: "The last rating stands: it is in use already, or was taken back before.",
  },
  keys: [
    [["1", "…", "5"], "choose a criterion"],
    [["6"], "or", ["0"], "choose “All in all”"],
    [["0", "…", "9"], "on a slider: set 0 to 0.9"],
    [["7", "5"], "on a slider: set 0.75 (two digits, typed quickly)"],
    [["1", "0"], "or", ["End"], "on a slider: set 1"],
    [["←", "→"], "on a slider: 0.05 less or more, with Shift 0.01"],
    [["Backspace"], "on a slider: back to “not rated yet”"],
    [["Shift", "3"], "choose a criterion while on a slider"],
    [["Enter"], "next unrated slider; when all are rated, submit"],
    [["F"], "red flags; then 1 to 8 or Space tick"],
  ],
  letters: { f: "flags" },
};

class RatingPage extends RaterPage {
  constructor(token) {
    super(token, RATING);
  }

  makeForm(me, onChange) {
    const places = { sliders: byId("sliders"), flags: byId("flags"), flagSet: byId("flag-set"), reason: byId("reason") };
    return new RatingForm(me.form, places, onChange);
  }

  makeWork(one) {
    return new RatingWork(this.api, this.memory, this.form, this, one);
  }

  shown() {
    document.querySelector(".rating-scroll").scrollTop = 0;
  }

  asksForMore() {
    const missing = this.form.missing();
    if (missing.length === 0) return false;
    for (const slider of missing) slider.missing = true;
    missing[0].focus();
    const titles = missing.map((slider) => slider.criterion.title).join(", ");
    const none = missing.length === this.form.sliders.length;
    view.toast(none ? "Nothing is rated yet: begin with the first slider." : `Still to rate: ${titles}.`);
    return true;
  }

  /** To be seen and copied. */
  keepLost(entered) {
    const touched = this.form.isTouched(entered);
    byId("lost-text").value = this.form.inWords(entered);
    byId("lost-draft").hidden = !touched;
    byId("lost-copy").hidden = !touched;
    return touched;
  }

  async copyLost() {
    const copied = await copyText(byId("lost-text").value);
    if (!copied) byId("lost-text").select();
    view.toast(copied ? "Copied" : "Press Ctrl C to copy the marked text");
  }

  get progress() {
    const all = this.form.sliders.length;
    const rated = all - this.form.missing().length;
    return [rated === all ? "All rated" : `${rated} of ${all} rated`, rated === all];
  }

  /** From slider to slider, then away with it. */
  goOn() {
    const slider = this.form.nextMissing(document.activeElement);
    if (slider === null) return this.submit();
    if (document.activeElement.closest(".slider") === slider.element) view.toast(`Still to rate: ${slider.criterion.title}.`);
    slider.focus();
    return true;
  }

  choose(number) {
    const slider = number === 0 ? this.form.overall : this.form.sliders[number - 1];
    slider?.focus();
    return slider !== undefined;
  }

  get formActions() {
    return { choose: (number) => this.choose(number), flags: () => this.form.focusFlags() };
  }

  get buttonActions() {
    return { "lost-copy": () => this.copyLost() };
  }
}

begin(RatingPage);
