// The comparing page: two replies at a time, A and B, of which one is better or neither.

import { CompareForm, STEPS } from "./compare_form.js";
import { CompareWork } from "./compare_work.js";
import { byId } from "./dom.js";
import { RaterPage, begin } from "./rater_page.js";
import * as view from "./view.js";

const COMPARING = {
  title: "Compare replies",
  memory: "compare/",
  paths: {
    me: "/api/compare/me", next: "/api/compare/next", send: "/api/compare/judgements", skip: "/api/compare/skip",
    undo: "/api/compare/undo",
  },
  texts: { "reply-a": "a", "reply-b": "b" },
  formId: "judgement",
  words: {
    one: "pair", many: "pairs", verb: "compare", done: "compared", answer: "judgement",
    stands: "The last judgement stands: it was taken back before, or belongs to an earlier sitting.",
  },
  keys: [
    [["1"], "A is better"],
    [["2"], "A is slightly better"],
    [["3"], "about the same"],
    [["4"], "B is slightly better"],
    [["5"], "B is better"],
    [["Enter"], "submit"],
    [["A"], "or", ["B"], "red flags of that reply; then 1 to 8 or Space tick"],
  ],
  letters: { a: "flagsA", b: "flagsB" },
};

class ComparePage extends RaterPage {
  constructor(token) {
    super(token, COMPARING);
  }

  makeForm(me, onChange) {
    const places = { steps: byId("steps"), choiceSet: byId("choice-set"), flags: byId("flags"), flagSet: byId("flag-set"), reason: byId("reason") };
    return new CompareForm(me.flags, places, onChange);
  }

  makeWork(one) {
    return new CompareWork(this.api, this.memory, this.form, this, one);
  }

  asksForMore() {
    if (this.form.choice !== null) return false;
    this.form.missing = true;
    this.form.focusChoice();
    view.toast("Which reply is better? Choose one of the five answers.");
    return true;
  }

  get progress() {
    const { choice } = this.form;
    return [choice === null ? "Nothing chosen yet" : STEPS[choice - 1], choice !== null];
  }

  get formActions() {
    return {
      choose: (number) => this.form.choose(number),
      flagsA: () => this.form.focusFlags("a"),
      flagsB: () => this.form.focusFlags("b"),
    };
  }
}

begin(ComparePage);
