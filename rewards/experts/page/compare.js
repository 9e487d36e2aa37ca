// The comparing page: fetches two replies, shows them as A and B, keeps the judgement safe on its way, and goes on.

import { Api, Refused, pause } from "./api.js";
import { CompareForm, STEPS } from "./compare_form.js";
import { CompareWork } from "./compare_work.js";
import { showTurns, watchScrolling } from "./conversation.js";
import { byId, count, tokenOf } from "./dom.js";
import { keyRows, listenToKeys } from "./keyboard.js";
import { Line } from "./line.js";
import { Memory, singleKeys } from "./memory.js";
import { SkipDialog } from "./skip.js";
import * as view from "./view.js";

const POLL_S = 10;
const TITLE = "Compare replies";
/** What Enter presses where nothing is to be compared. */
const MAIN_BUTTON = { notice: "agree", warning: "warning-show", lost: "lost-next", break: "new-sitting", empty: "empty-start" };
const CAN_UNDO_ON = ["work", "warning", "break", "empty"];
const LETTERS = { a: "flagsA", b: "flagsB", r: "reason", c: "conversation", s: "skip", u: "undo", "?": "help" };
const KEYS = [
  [["1"], "A is better"],
  [["2"], "A is slightly better"],
  [["3"], "about the same"],
  [["4"], "B is slightly better"],
  [["5"], "B is better"],
  [["Enter"], "submit"],
  [["A"], "or", ["B"], "red flags of that reply; then 1 to 8 or Space tick"],
  [["R"], "reason; Ctrl Enter submits, Esc leaves"],
  [["C"], "conversation, to scroll with the arrow keys"],
  [["S"], "skip, with a reason"],
  [["U"], "take back the last judgement"],
  [["?"], "this help"],
];

class ComparePage {
  busy = false; // a request that ends the item in work is on its way

  constructor(token) {
    this.api = new Api(token);
    this.memory = new Memory(token, "compare/");
    this.line = new Line(this.api, () => this.work?.suspend());
    this.skipDialog = new SkipDialog((reason) => this.skip(reason));
  }

  async start() {
    this.me = await this.line.insist("GET", "/api/compare/me");
    const places = { steps: byId("steps"), choiceSet: byId("choice-set"), flags: byId("flags"), flagSet: byId("flag-set"), reason: byId("reason") };
    this.form = new CompareForm(this.me.flags, places, () => {
      this.work.remember();
      this.paint();
    });
    this.work = new CompareWork(this.api, this.memory, this.form, this);
    byId("who").textContent = this.me.name;
    byId("open-help").hidden = false;
    this.listen();
    if (this.memory.agreed) await this.next();
    else this.showNotice();
  }

  /** Runs what ends the item in work, one at a time. A refusal that it did not expect is shown to the rater. */
  async alone(action) {
    if (this.busy) return;
    const before = document.activeElement;
    this.busy = true;
    this.paint();
    try {
      await action();
    } catch (problem) {
      if (!(problem instanceof Refused)) throw problem;
      this.complain(problem.message);
    } finally {
      this.busy = false;
      this.paint();
      // A locked form loses the focus; if nothing else has taken it, it goes back to where it was.
      if (document.activeElement === document.body) before?.focus();
    }
  }

  complain(text) {
    view.banner(text, { tone: "warn", actions: [["Dismiss", view.noBanner]] });
    view.alertAloud(text);
  }

  /** The lease was not renewed, for another reason than that the item is gone. */
  refused(problem) {
    if (!this.line.closedBy(problem)) this.complain(problem.message);
  }

  // ------------------------------------------------------------------ from item to item

  showNotice() {
    byId("notice-name").textContent = `Welcome, ${this.me.name}`;
    byId("notice-crisis").checked = this.me.crisis;
    view.show("notice");
  }

  agree() {
    return this.alone(async () => {
      const crisis = byId("notice-crisis").checked;
      if (crisis !== this.me.crisis) await this.setCrisis(crisis);
      this.memory.agree();
      await this.next();
    });
  }

  async next() {
    const { pending } = this.memory;
    if (pending && !(await this.send(pending))) return;
    // A quick answer should not flash another view in between.
    const slow = setTimeout(() => view.show("waiting"), 400);
    const answer = await this.line.insist("POST", "/api/compare/next", {});
    clearTimeout(slow);
    if (answer.item) this.open(answer.item);
    else if (answer.why === "sitting") this.showBreak();
    else this.showEmpty();
  }

  open(item, { takenBack = false } = {}) {
    view.noBanner();
    this.work.open(item, { takenBack });
    if (this.work.needsWarning) this.showWarning();
    else this.showItem(takenBack ? "Your last judgement is taken back. Change it and submit it again." : "");
  }

  showWarning() {
    this.clear();
    this.paint();
    document.title = `Content warning – ${TITLE}`;
    view.show("warning");
  }

  showItem(word = "") {
    this.work.reveal();
    this.paint();
    document.title = TITLE;
    view.show("work");
    byId("reply-a").textContent = this.work.item.a;
    byId("reply-b").textContent = this.work.item.b;
    showTurns(this.work.item.turns); // after the view: a hidden pane cannot be scrolled
    if (word) view.toast(word);
  }

  showBreak() {
    this.leave();
    byId("break-text").textContent = `You have compared ${count(this.me.sitting.done, "pair", "pairs")} in this sitting. Thank you.`;
    document.title = `Time for a break – ${TITLE}`;
    this.paint();
    view.show("break");
  }

  showEmpty() {
    this.leave();
    byId("empty-title").textContent = "Nothing to compare just now";
    byId("empty-done").hidden = this.me.done === 0;
    byId("empty-done").textContent = `You have compared ${count(this.me.done, "pair", "pairs")} so far. Thank you.`;
    byId("empty-start").hidden = true;
    document.title = TITLE;
    this.paint();
    view.show("empty");
    this.watchQueue();
  }

  /** Looks for new pairs without a word, and without taking one: its lease would begin while the rater may be away. */
  async watchQueue() {
    const round = (this.watching = {});
    for (;;) {
      await pause(POLL_S);
      if (round !== this.watching || view.showing() !== "empty") return;
      await this.refreshMe();
      if (this.me.left > 0 && view.showing() === "empty") break;
    }
    byId("empty-title").textContent = "A new pair has arrived";
    byId("empty-start").hidden = false;
    document.title = `● A new pair – ${TITLE}`;
    view.say("A new pair has arrived. Press Enter to compare it.");
  }

  /** Asks once how things stand; where nobody answers, the next time will tell. */
  async refreshMe() {
    try {
      this.me = await this.api.ask("GET", "/api/compare/me");
    } catch (problem) {
      this.line.closedBy(problem);
      return;
    }
    this.paint();
  }

  newSitting() {
    return this.alone(async () => {
      await this.line.insist("POST", "/api/sitting", {});
      this.me = { ...this.me, sitting: { ...this.me.sitting, done: 0 }, can_undo: false };
      await this.next();
    });
  }

  leave() {
    this.work.close();
    view.noBanner();
    this.clear();
  }

  /** A text that may distress is not left in the page behind a warning. */
  clear() {
    for (const id of ["turns", "reply-a", "reply-b"]) byId(id).replaceChildren();
  }

  // ------------------------------------------------------------------ what a rater does with an item

  get isComparing() {
    return this.work.item !== null && !this.busy && view.showing() === "work";
  }

  submit() {
    if (!this.isComparing) return false;
    if (this.form.choice === null) {
      this.form.missing = true;
      this.form.focusChoice();
      view.toast("Which reply is better? Choose one of the five answers.");
      return true;
    }
    this.alone(async () => {
      const judgement = this.work.finish();
      this.memory.keepPending(judgement);
      if (await this.send(judgement)) await this.next();
    });
    return true;
  }

  /** Sends a judgement, with the same submission id however often it takes and after a reload too. Whether it is stored. */
  async send(judgement) {
    const words = "No connection. Your judgement is kept here and is sent as soon as the connection is back. Please leave the page open.";
    try {
      const { sitting } = await this.line.insist("POST", "/api/compare/judgements", judgement, words);
      this.me = { ...this.me, sitting, done: this.me.done + 1, can_undo: true };
    } catch (problem) {
      this.memory.dropPending();
      if (problem instanceof Refused && problem.isGone) {
        this.lost(problem);
        return false;
      }
      if (this.work.item === null) return true; // sent after a reload: the item comes again
      this.work.resume();
      throw problem;
    }
    this.memory.dropPending();
    this.leave();
    view.toast(`Judgement saved – ${this.me.sitting.done} of ${this.me.sitting.limit} in this sitting`);
    return true;
  }

  askSkip() {
    if (this.work.item === null || this.busy) return false;
    if (view.showing() === "warning") this.skip("content warning: did not open it");
    else this.skipDialog.open();
    return true;
  }

  skip(reason) {
    return this.alone(async () => {
      try {
        await this.line.insist("POST", "/api/compare/skip", { lease: this.work.item.lease, reason });
      } catch (problem) {
        // Gone already, for its time ran out: that is what was asked for.
        if (!(problem instanceof Refused && problem.isGone)) throw problem;
      }
      this.leave();
      view.say("Skipped.");
      await this.next();
    });
  }

  undo() {
    if (!this.me.can_undo || this.busy || !CAN_UNDO_ON.includes(view.showing())) return false;
    this.alone(async () => {
      let answer;
      try {
        answer = await this.line.insist("POST", "/api/compare/undo", {});
      } catch (problem) {
        if (!(problem instanceof Refused && problem.isGone)) throw problem;
        this.me = { ...this.me, can_undo: false };
        this.complain("The last judgement stands: it was taken back before, or belongs to an earlier sitting.");
        return;
      }
      this.me = { ...this.me, can_undo: false };
      this.work.putAside();
      this.open(answer.item, { takenBack: true });
      await this.refreshMe();
    });
    return true;
  }

  giveUp() {
    return this.alone(async () => {
      this.leave();
      await this.next();
    });
  }

  /** The item is somebody else's now. */
  lost(problem) {
    const [what] = problem.message.split(": ");
    byId("lost-detail").textContent = `${what.charAt(0).toUpperCase()}${what.slice(1)}. What you entered was not counted.`;
    this.leave();
    document.title = TITLE;
    this.paint();
    view.show("lost");
  }

  // ------------------------------------------------------------------ settings

  /** Crisis conversations are shown to those who agreed to see them. */
  async setCrisis(crisis) {
    await this.line.insist("POST", "/api/settings", { crisis });
    this.me = { ...this.me, crisis };
  }

  /** Who opts out is not left with the crisis conversation at hand: the service takes it back. */
  changeCrisis(crisis) {
    return this.alone(async () => {
      await this.setCrisis(crisis);
      if (crisis || !this.work.item?.sensitive) return;
      this.leave();
      await this.next();
    });
  }

  openHelp() {
    byId("set-crisis").checked = this.me.crisis;
    byId("set-keys").checked = singleKeys.on;
    byId("help-dialog").showModal();
    byId("help-title").focus();
  }

  // ------------------------------------------------------------------ painting and listening

  /** Everything that follows from the state: progress, what is chosen, what can be done now. */
  paint() {
    const { done, limit } = this.me.sitting;
    byId("sitting").hidden = ["notice", "closed"].includes(view.showing());
    byId("sitting-text").textContent = `${done} of ${limit}`;
    byId("sitting-bar").max = limit;
    byId("sitting-bar").value = done;
    byId("work-title").textContent = `Pair ${done + 1} of this sitting`;
    const { choice } = this.form;
    byId("count").textContent = choice === null ? "Nothing chosen yet" : STEPS[choice - 1];
    byId("submit").classList.toggle("is-ready", choice !== null);
    this.form.locked = this.busy;
    byId("judgement").setAttribute("aria-busy", String(this.busy));
    document.body.classList.toggle("no-single-keys", !singleKeys.on);
    for (const button of document.querySelectorAll("#undo, .undo-elsewhere")) button.hidden = !this.me.can_undo;
  }

  /** Enter: away with it. On the other views it is the main button. */
  advance() {
    const main = MAIN_BUTTON[view.showing()];
    if (!main) return this.submit();
    if (!byId(main).hidden) byId(main).click();
    return true;
  }

  listen() {
    this.listenToButtons();
    byId("judgement").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    byId("set-crisis").addEventListener("change", (event) => this.changeCrisis(event.target.checked));
    byId("set-keys").addEventListener("change", (event) => {
      singleKeys.on = event.target.checked;
      this.paint();
    });
    byId("help-keys").replaceChildren(...keyRows(KEYS));
    watchScrolling();
    const whileComparing = (action) => (argument) => this.isComparing && action(argument) !== false;
    const actions = {
      choose: whileComparing((number) => this.form.choose(number)),
      advance: () => this.advance(),
      submit: () => this.submit(),
      flagsA: whileComparing(() => this.form.focusFlags("a")),
      flagsB: whileComparing(() => this.form.focusFlags("b")),
      reason: whileComparing(() => this.form.focusReason()),
      conversation: whileComparing(() => byId("history").focus()),
      skip: () => this.askSkip(),
      undo: () => this.undo(),
      help: () => this.openHelp(),
      leave: whileComparing(() => byId("work-title").focus({ preventScroll: true })),
    };
    listenToKeys(actions, LETTERS);
  }

  listenToButtons() {
    const actions = {
      agree: () => this.agree(),
      "warning-show": () => this.showItem(),
      "warning-skip": () => this.askSkip(),
      "warning-never": () => this.changeCrisis(false),
      undo: () => this.undo(),
      skip: () => this.askSkip(),
      "lost-next": () => this.giveUp(),
      "new-sitting": () => this.newSitting(),
      "empty-start": () => this.giveUp(),
      "open-help": () => this.openHelp(),
      "help-close": () => byId("help-dialog").close(),
    };
    for (const [id, action] of Object.entries(actions)) byId(id).addEventListener("click", action);
    for (const button of document.querySelectorAll(".undo-elsewhere")) button.addEventListener("click", () => this.undo());
  }
}

function begin() {
  const token = tokenOf(window.location);
  // The token is in the fragment: another one in the same tab is another rater.
  window.addEventListener("hashchange", () => window.location.reload());
  if (token !== null) new ComparePage(token).start().catch(view.closeByError);
  else view.close("Please open your personal link", "This page opens with the link from your invitation. It ends in a # and a long row of letters and digits.");
}

begin();
