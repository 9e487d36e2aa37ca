// The rater's page: fetches a reply, shows it, keeps the rating safe on its way, and goes on to the next.

import { Api, Refused, pause } from "./api.js";
import { clearConversation, showConversation, watchScrolling } from "./conversation.js";
import { byId, copyText, count, tokenOf } from "./dom.js";
import { RatingForm, isTouched } from "./form.js";
import { keyRows, listenToKeys } from "./keyboard.js";
import { Line } from "./line.js";
import { Memory, singleKeys } from "./memory.js";
import { SkipDialog } from "./skip.js";
import * as view from "./view.js";
import { Work } from "./work.js";

const POLL_S = 10;
const TITLE = "Rate replies";
/** What Enter presses where nothing is to be rated. */
const MAIN_BUTTON = { notice: "agree", warning: "warning-show", lost: "lost-next", break: "new-sitting", empty: "empty-start" };
const CAN_UNDO_ON = ["work", "warning", "break", "empty"];

class RatingPage {
  busy = false; // a request that ends the item in work is on its way

  constructor(token) {
    this.api = new Api(token);
    this.memory = new Memory(token);
    this.line = new Line(this.api, () => this.work?.suspend());
    this.skipDialog = new SkipDialog((reason) => this.skip(reason));
  }

  async start() {
    this.me = await this.line.insist("GET", "/api/me");
    const places = { sliders: byId("sliders"), flags: byId("flags"), flagSet: byId("flag-set"), reason: byId("reason") };
    this.form = new RatingForm(this.me.form, places, () => {
      this.work.changed();
      this.paint();
    });
    this.work = new Work(this.api, this.memory, this.form, this);
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

  /** A draft was refused, for another reason than that the item is gone. */
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
    const answer = await this.line.insist("POST", "/api/next", {});
    clearTimeout(slow);
    if (answer.item) this.open(answer.item);
    else if (answer.why === "sitting") this.showBreak();
    else this.showEmpty();
  }

  open(item, { takenBack = false } = {}) {
    view.noBanner();
    this.work.open(item, { takenBack });
    if (this.work.needsWarning) this.showWarning();
    else this.showItem(takenBack ? "Your last rating is taken back. Change it and submit it again." : "");
  }

  showWarning() {
    clearConversation();
    this.paint();
    document.title = `Content warning – ${TITLE}`;
    view.show("warning");
  }

  showItem(word = "") {
    this.work.reveal();
    this.paint();
    document.title = TITLE;
    view.show("work");
    showConversation(this.work.item); // after the view: a hidden pane cannot be scrolled
    document.querySelector(".rating-scroll").scrollTop = 0;
    if (word) view.toast(word);
  }

  showBreak() {
    this.leave();
    const { done } = this.me.sitting;
    byId("break-text").textContent = `You have rated ${count(done, "reply", "replies")} in this sitting. Thank you.`;
    document.title = `Time for a break – ${TITLE}`;
    this.paint();
    view.show("break");
  }

  showEmpty() {
    this.leave();
    byId("empty-title").textContent = "Nothing to rate just now";
    byId("empty-done").hidden = this.me.done === 0;
    byId("empty-done").textContent = `You have rated ${count(this.me.done, "reply", "replies")} so far. Thank you.`;
    byId("empty-start").hidden = true;
    document.title = TITLE;
    this.paint();
    view.show("empty");
    this.watchQueue();
  }

  /**
   * Looks for new replies without a word. It only asks whether there are any: taking one would start its lease while the
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
    byId("empty-title").textContent = "A new reply has arrived";
    byId("empty-start").hidden = false;
    document.title = `● A new reply – ${TITLE}`;
    view.say("A new reply has arrived. Press Enter to rate it.");
  }

  /** Asks once how things stand; where nobody answers, the next time will tell. */
  async refreshMe() {
    try {
      this.me = await this.api.ask("GET", "/api/me");
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
    clearConversation();
  }

  // ------------------------------------------------------------------ what a rater does with an item

  get isRating() {
    return this.work.item !== null && !this.busy && view.showing() === "work";
  }

  submit() {
    if (!this.isRating) return false;
    const missing = this.form.missing();
    if (missing.length) this.askFor(missing);
    else {
      this.alone(async () => {
        const rating = this.work.finish();
        this.memory.keepPending(rating);
        if (await this.send(rating)) await this.next();
      });
    }
    return true;
  }

  askFor(missing) {
    for (const slider of missing) slider.missing = true;
    missing[0].focus();
    const titles = missing.map((slider) => slider.criterion.title).join(", ");
    const none = missing.length === this.form.sliders.length;
    view.toast(none ? "Nothing is rated yet: begin with the first slider." : `Still to rate: ${titles}.`);
  }

  /** Sends a rating, with the same submission id however often it takes and after a reload too. Whether it is stored. */
  async send(rating) {
    const words = "No connection. Your rating is kept here and is sent as soon as the connection is back. Please leave the page open.";
    try {
      const { sitting } = await this.line.insist("POST", "/api/ratings", rating, words);
      this.me = { ...this.me, sitting, done: this.me.done + 1, can_undo: true };
    } catch (problem) {
      this.memory.dropPending();
      if (problem instanceof Refused && problem.isGone) {
        this.lost(problem, rating);
        return false;
      }
      if (this.work.item === null) return true; // sent after a reload: the item comes again, with its draft
      this.work.resume();
      throw problem;
    }
    this.memory.dropPending();
    this.leave();
    view.toast(`Rating saved – ${this.me.sitting.done} of ${this.me.sitting.limit} in this sitting`);
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
        await this.line.insist("POST", "/api/skip", { lease: this.work.item.lease, reason });
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
      // The service keeps the draft of the item in work, and gives it again after this one.
      if (this.work.touched) await this.work.save();
      let answer;
      try {
        answer = await this.line.insist("POST", "/api/undo", {});
      } catch (problem) {
        if (!(problem instanceof Refused && problem.isGone)) throw problem;
        this.me = { ...this.me, can_undo: false };
        this.complain("The last rating stands: it is in use already, or was taken back before.");
        return;
      }
      this.work.hush();
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

  /** The item is somebody else's now. What was entered stays to be seen and copied. */
  lost(problem, draft = this.form.read()) {
    const touched = isTouched(draft);
    byId("lost-detail").textContent = touched ? `${asSentence(problem.message)} What you entered was not counted.` : asSentence(problem.message);
    byId("lost-text").value = this.form.inWords(draft);
    byId("lost-draft").hidden = !touched;
    byId("lost-copy").hidden = !touched;
    this.leave();
    document.title = TITLE;
    this.paint();
    view.show("lost");
  }

  async copyLost() {
    const copied = await copyText(byId("lost-text").value);
    if (!copied) byId("lost-text").select();
    view.toast(copied ? "Copied" : "Press Ctrl C to copy the marked text");
  }

  // ------------------------------------------------------------------ settings

  /** Crisis conversations are shown to those who agreed to see them. */
  async setCrisis(crisis) {
    await this.line.insist("POST", "/api/settings", { crisis });
    this.me = { ...this.me, crisis };
  }

  /** Changes the choice while rating: who opts out is not left with the crisis conversation at hand. */
  changeCrisis(crisis) {
    return this.alone(async () => {
      await this.setCrisis(crisis);
      if (crisis || !this.work.item?.sensitive) return;
      this.leave(); // the service has taken it back already
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

  /** Everything that follows from the state: progress, counts, what can be done now. */
  paint() {
    const { done, limit } = this.me.sitting;
    byId("sitting").hidden = ["notice", "closed"].includes(view.showing());
    byId("sitting-text").textContent = `${done} of ${limit}`;
    byId("sitting-bar").max = limit;
    byId("sitting-bar").value = done;
    byId("work-title").textContent = `Reply ${done + 1} of this sitting`;
    const all = this.form.sliders.length;
    const rated = all - this.form.missing().length;
    byId("count").textContent = rated === all ? "All rated" : `${rated} of ${all} rated`;
    byId("submit").classList.toggle("is-ready", rated === all);
    this.form.locked = this.busy;
    byId("rating").setAttribute("aria-busy", String(this.busy));
    document.body.classList.toggle("no-single-keys", !singleKeys.on);
    for (const button of document.querySelectorAll("#undo, .undo-elsewhere")) button.hidden = !this.me.can_undo;
  }

  /** Enter: from slider to slider, then away with it. On the other views it is the main button. */
  advance() {
    const main = MAIN_BUTTON[view.showing()];
    if (main) {
      if (!byId(main).hidden) byId(main).click();
      return true;
    }
    if (!this.isRating) return false;
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

  listen() {
    this.listenToButtons();
    byId("rating").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    byId("set-crisis").addEventListener("change", (event) => this.changeCrisis(event.target.checked));
    byId("set-keys").addEventListener("change", (event) => {
      singleKeys.on = event.target.checked;
      this.paint();
    });
    byId("help-keys").replaceChildren(...keyRows());
    watchScrolling();
    const whileRating = (action) => (argument) => this.isRating && action(argument) !== false;
    listenToKeys({
      choose: whileRating((number) => this.choose(number)),
      advance: () => this.advance(),
      submit: () => this.submit(),
      flags: whileRating(() => this.form.focusFlags()),
      reason: whileRating(() => this.form.focusReason()),
      conversation: whileRating(() => byId("history").focus()),
      skip: () => this.askSkip(),
      undo: () => this.undo(),
      help: () => this.openHelp(),
      leave: whileRating(() => byId("work-title").focus({ preventScroll: true })),
    });
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
      "lost-copy": () => this.copyLost(),
      "new-sitting": () => this.newSitting(),
      "empty-start": () => this.giveUp(),
      "open-help": () => this.openHelp(),
      "help-close": () => byId("help-dialog").close(),
    };
    for (const [id, action] of Object.entries(actions)) byId(id).addEventListener("click", action);
    for (const button of document.querySelectorAll(".undo-elsewhere")) button.addEventListener("click", () => this.undo());
  }
}

/** The service's line without its advice for programs: "the time is over: ask for the next" -> "The time is over." */
function asSentence(line) {
  const [what] = line.split(": ");
  return `${what.charAt(0).toUpperCase()}${what.slice(1)}.`;
}

function begin() {
  const token = tokenOf(window.location);
  // The token is in the fragment: another one in the same tab is another rater.
  window.addEventListener("hashchange", () => window.location.reload());
  if (token !== null) new RatingPage(token).start().catch(view.closeByError);
  else view.close("Please open your personal link", "This page opens with the link from your invitation. It ends in a # and a long row of letters and digits.");
}

begin();
