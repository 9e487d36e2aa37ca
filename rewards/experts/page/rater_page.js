// What raters' pages have in common: an item is fetched and shown, its answer is kept safe on its way, and the next one comes.

import { Api, Refused, pause } from "./api.js";
import { listenToControls } from "./controls.js";
import { showTurns } from "./conversation.js";
import { byId, count, tokenOf } from "./dom.js";
import { Line } from "./line.js";
import { Memory, singleKeys } from "./memory.js";
import { SkipDialog } from "./skip.js";
import * as view from "./view.js";

const POLL_S = 10;
/** What Enter presses where there is no item to work on. */
const MAIN_BUTTON = { notice: "agree", warning: "warning-show", lost: "lost-next", break: "new-sitting", empty: "empty-start" };
const CAN_UNDO_ON = ["work", "warning", "break", "empty"];

/** "rating" -> "Rating". */
const capital = (words) => `${words.charAt(0).toUpperCase()}${words.slice(1)}`;

export class RaterPage {
  busy = false; // a request that ends the item in work is on its way

  /**
   * `kind` is what one page is told of another by: `title`; `memory`, under which this browser keeps things; `paths` of the
   * service; `texts`, from the ids of elements to the parts of an item that they show; `formId`; the further `keys` and
   * `letters`; and `words`: `one` item and `many`, which a rater `verb`s, has `done`, and gives an `answer` to; `stands`, why
   * an answer is not taken back.
   */
  constructor(token, kind) {
    this.kind = kind;
    this.api = new Api(token);
    this.memory = new Memory(token, kind.memory);
    this.line = new Line(this.api, () => this.work?.suspend());
    this.skipDialog = new SkipDialog((reason) => this.skip(reason));
  }

  // ------------------------------------------------------------------ what a page adds

  /** Builds the form of what the service told first (`me`); `onChange()` follows every change by the rater. */
  makeForm(me, onChange) {
    throw new Error("a page has a form");
  }

  /** Builds the item in work round the form. */
  makeWork(one) {
    throw new Error("a page has an item in work");
  }

  /** A new item is to be seen. */
  shown() {}

  /** Whether something is missing from the form; the rater is told what. */
  asksForMore() {
    throw new Error("a page says what its form needs");
  }

  /** What was entered on an item that was lost is kept for its rater, where the page can; whether anything was. */
  keepLost(entered) {
    return true;
  }

  /** How far the form is, in words, and whether it can be sent: [words, ready]. */
  get progress() {
    throw new Error("a page says how far its form is");
  }

  /** Enter, while working. */
  goOn() {
    return this.submit();
  }

  /** What the digits and the page's own letters do while working. */
  get formActions() {
    return {};
  }

  /** What the page's own buttons do, by their ids. */
  get buttonActions() {
    return {};
  }

  // ------------------------------------------------------------------ beginning

  async start() {
    this.me = await this.line.insist("GET", this.kind.paths.me);
    this.form = this.makeForm(this.me, () => {
      this.work.changed();
      this.paint();
    });
    this.work = this.makeWork(this.kind.words.one);
    byId("who").textContent = this.me.name;
    byId("open-help").hidden = false;
    listenToControls(this);
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

  /** A draft was refused, or a lease not renewed, for another reason than that the item is gone. */
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
    const answer = await this.line.insist("POST", this.kind.paths.next, {});
    clearTimeout(slow);
    if (answer.item) this.open(answer.item);
    else if (answer.why === "sitting") this.showBreak();
    else this.showEmpty();
  }

  open(item, { takenBack = false } = {}) {
    view.noBanner();
    this.work.open(item, { takenBack });
    const word = `Your last ${this.kind.words.answer} is taken back. Change it and submit it again.`;
    if (this.work.needsWarning) this.showWarning();
    else this.showItem(takenBack ? word : "");
  }

  showWarning() {
    this.clear();
    this.paint();
    document.title = `Content warning – ${this.kind.title}`;
    view.show("warning");
  }

  showItem(word = "") {
    this.work.reveal();
    this.paint();
    document.title = this.kind.title;
    view.show("work"); // before the texts: a hidden pane cannot be scrolled
    const { item } = this.work;
    for (const [id, part] of Object.entries(this.kind.texts)) {
      byId(id).textContent = item[part];
      byId(id).scrollTop = 0;
    }
    showTurns(item.turns);
    this.shown();
    if (word) view.toast(word);
  }

  showBreak() {
    this.leave();
    const { one, many, done } = this.kind.words;
    byId("break-text").textContent = `You have ${done} ${count(this.me.sitting.done, one, many)} in this sitting. Thank you.`;
    document.title = `Time for a break – ${this.kind.title}`;
    this.paint();
    view.show("break");
  }

  showEmpty() {
    this.leave();
    const { one, many, verb, done } = this.kind.words;
    byId("empty-title").textContent = `Nothing to ${verb} just now`;
    byId("empty-done").hidden = this.me.done === 0;
    byId("empty-done").textContent = `You have ${done} ${count(this.me.done, one, many)} so far. Thank you.`;
    byId("empty-start").hidden = true;
    document.title = this.kind.title;
    this.paint();
    view.show("empty");
    this.watchQueue();
  }

  /**
   * Looks for new items without a word. It only asks whether there are any: taking one would start its lease while the
   * rater may be away, and move the focus under the rater's hands.
   */
  async watchQueue() {
    const round = (this.watching = {});
    for (;;) {
      await pause(POLL_S);
      if (round !== this.watching || view.showing() !== "empty") return;
      await this.refreshMe();
      if (this.me.left > 0 && view.showing() === "empty") break;
    }
    const { one, verb } = this.kind.words;
    byId("empty-title").textContent = `A new ${one} has arrived`;
    byId("empty-start").hidden = false;
    document.title = `● A new ${one} – ${this.kind.title}`;
    view.say(`A new ${one} has arrived. Press Enter to ${verb} it.`);
  }

  /** Asks once how things stand; where nobody answers, the next time will tell. */
  async refreshMe() {
    try {
      this.me = await this.api.ask("GET", this.kind.paths.me);
    } catch (problem) {
      this.line.closedBy(problem);
      return;
    }
    this.paint();
  }

  newSitting() {
    return this.alone(async () => {
      const { sitting } = await this.line.insist("POST", "/api/sitting", {});
      this.me = { ...this.me, sitting, can_undo: false };
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
    for (const id of ["turns", ...Object.keys(this.kind.texts)]) byId(id).replaceChildren();
  }

  // ------------------------------------------------------------------ what a rater does with an item

  get isWorking() {
    return this.work.item !== null && !this.busy && view.showing() === "work";
  }

  submit() {
    if (!this.isWorking) return false;
    if (this.asksForMore()) return true;
    this.alone(async () => {
      const answer = this.work.finish();
      this.memory.keepPending(answer);
      if (await this.send(answer)) await this.next();
    });
    return true;
  }

  /** Sends an answer, with the same submission id however often it takes and after a reload too. Whether it is stored. */
  async send(answer) {
    const { paths, words } = this.kind;
    const offline = `No connection. Your ${words.answer} is kept here and is sent as soon as the connection is back. Please leave the page open.`;
    try {
      const { sitting } = await this.line.insist("POST", paths.send, answer, offline);
      this.me = { ...this.me, sitting, done: this.me.done + 1, can_undo: true };
    } catch (problem) {
      this.memory.dropPending();
      if (problem instanceof Refused && problem.isGone) {
        this.lost(problem, answer);
        return false;
      }
      if (this.work.item === null) return true; // sent after a reload: the item comes again, with its draft
      this.work.resume();
      throw problem;
    }
    this.memory.dropPending();
    this.leave();
    view.toast(`${capital(words.answer)} saved – ${this.me.sitting.done} of ${this.me.sitting.limit} in this sitting`);
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
      this.work.hush();
      try {
        await this.line.insist("POST", this.kind.paths.skip, { lease: this.work.item.lease, reason });
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
      await this.work.beforeUndo();
      let answer;
      try {
        answer = await this.line.insist("POST", this.kind.paths.undo, {});
      } catch (problem) {
        if (!(problem instanceof Refused && problem.isGone)) throw problem;
        this.me = { ...this.me, can_undo: false };
        this.complain(this.kind.words.stands);
        return;
      }
      this.work.putAside();
      this.me = { ...this.me, can_undo: false };
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

  /** The item is somebody else's now. The service's line is shown without its advice for programs, which follows a colon. */
  lost(problem, entered = this.form.read()) {
    const [what] = problem.message.split(": ");
    const uncounted = this.keepLost(entered) ? " What you entered was not counted." : "";
    byId("lost-detail").textContent = `${capital(what)}.${uncounted}`;
    this.leave();
    document.title = this.kind.title;
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

  // ------------------------------------------------------------------ painting

  /** Everything that follows from the state: progress, what is entered, what can be done now. */
  paint() {
    const { done, limit } = this.me.sitting;
    byId("sitting").hidden = ["notice", "closed"].includes(view.showing());
    byId("sitting-text").textContent = `${done} of ${limit}`;
    byId("sitting-bar").max = limit;
    byId("sitting-bar").value = done;
    byId("work-title").textContent = `${capital(this.kind.words.one)} ${done + 1} of this sitting`;
    const [words, ready] = this.progress;
    byId("count").textContent = words;
    byId("submit").classList.toggle("is-ready", ready);
    this.form.locked = this.busy;
    byId(this.kind.formId).setAttribute("aria-busy", String(this.busy));
    document.body.classList.toggle("no-single-keys", !singleKeys.on);
    for (const button of document.querySelectorAll("#undo, .undo-elsewhere")) button.hidden = !this.me.can_undo;
  }

  /** Enter: on with the form, then away with it. On the other views it is the main button. */
  advance() {
    const main = MAIN_BUTTON[view.showing()];
    if (!main) return this.isWorking && this.goOn();
    if (!byId(main).hidden) byId(main).click();
    return true;
  }
}

/** Opens the page for whoever has the link: `Page` is a class of pages that takes the token. */
export function begin(Page) {
  const token = tokenOf(window.location);
  // The token is in the fragment: another one in the same tab is another rater.
  window.addEventListener("hashchange", () => window.location.reload());
  if (token !== null) new Page(token).start().catch(view.closeByError);
  else view.close("Please open your personal link", "This page opens with the link from your invitation. It ends in a # and a long row of letters and digits.");
}
