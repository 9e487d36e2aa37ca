// The admin's page: how the queue, the raters and their agreement stand; invitations, shutting out, export.

import { Api, Refused, Unreachable } from "./api.js";
import { barList, intervalMark, paceChart } from "./charts.js";
import { byId, copyText, count, make, tokenOf } from "./dom.js";
import * as view from "./view.js";

const REFRESH_MS = 10_000;
const NONE = "–";
const TIERS = {
  none: "No danger", distress: "Distress", passive: "Passive ideation", active: "Active ideation", imminent: "Imminent danger",
  other: "Other emergency",
};
const COEFFICIENTS = [
  ["icc_a1", "ICC(A,1)", "one rating: agreement in absolute terms"],
  ["icc_ak", "ICC(A,k)", "the mean of several raters, absolute"],
  ["icc_ck", "ICC(C,k)", "the mean of several raters, their bias set aside"],
  ["alpha", "Krippendorff’s α", "agreement beyond chance, interval scale"],
];
const EXTENSIONS = { csv: "csv", jsonl: "jsonl", argilla: "jsonl", "label-studio": "json" };

class AdminPage {
  constructor(token) {
    this.api = new Api(token);
    this.painted = {}; // what each part showed last: parts that did not change are left alone
  }

  async start() {
    this.listen();
    await this.refresh();
    setInterval(() => document.hidden || this.refresh(), REFRESH_MS);
    document.addEventListener("visibilitychange", () => document.hidden || this.refresh());
  }

  async refresh() {
    let told;
    let comparisons;
    try {
      told = await this.api.ask("GET", "/api/admin/overview");
      comparisons = await this.api.ask("GET", "/api/admin/comparisons");
    } catch (problem) {
      if (problem instanceof Unreachable) view.banner("No connection to the service. The numbers below are older; trying again …", { tone: "warn" });
      else if (problem instanceof Refused && problem.status !== 429) view.closeByRefusal(problem);
      else if (!(problem instanceof Refused)) throw problem;
      return;
    }
    view.noBanner();
    byId("fresh").textContent = `As of ${new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" })}`;
    this.paint(told);
    this.paintComparisons(comparisons);
    const rates = told.queue.open > 0 || told.raters.some((rater) => rater.ratings > 0);
    for (const box of document.querySelectorAll("[data-of=ratings]")) box.hidden = comparisons.asked > 0 && !rates;
    if (view.showing() !== "board") view.show("board");
  }

  paint({ queue, raters, agreement, per_hour: perHour, flags }) {
    const all = raters.reduce((sum, rater) => sum + rater.ratings, 0);
    this.part("tiles", { queue, all, raters: raters.length }, () => tiles(queue, all, perHour));
    this.part("pace", perHour, () => paceChart(perHour));
    this.part("tiers", queue.by_tier, () => [
      barList(Object.entries(queue.by_tier).sort(byTier).map(([tier, n]) => [TIERS[tier] ?? tier, n]), "Nothing is waiting."),
    ]);
    this.part("flag-counts", flags, () => [
      barList(Object.entries(flags).sort((a, b) => b[1] - a[1]).map(([flag, n]) => [inWords(flag), n]), "None so far."),
    ]);
    this.part("agreement", agreement, () => agreementRows(agreement));
    byId("agreement-note").textContent = agreement
      ? `From ${count(agreement.items, "reply", "replies")} with several ratings by ${count(agreement.raters, "rater", "raters")}; bands are 95 % intervals. The dotted line is 0, the right end is 1.`
      : "";
    this.part("raters", raters, () => raters.map((rater) => this.raterRow(rater, meanOf(raters))));
    byId("raters-box").hidden = raters.length === 0;
    byId("no-raters").hidden = raters.length > 0;
  }

  /** How far the side-by-sides are, where there are any; never which arm is ahead. */
  paintComparisons({ asked, done, begun, same, leased, judgements, raters }) {
    byId("comparisons-box").hidden = asked + same === 0;
    byId("comparisons-bar").max = Math.max(asked, 1);
    byId("comparisons-bar").value = done;
    byId("comparisons-done").textContent = `${done} of ${asked} done`;
    const also = [`${begun} begun`, `${leased} in work`, count(judgements, "judgement", "judgements")];
    if (same) also.push(`${count(same, "pair reads", "pairs read")} the same and ${same === 1 ? "is" : "are"} not asked`);
    byId("comparisons-text").textContent = `${also.join(" · ")}.`;
    this.part("comparisons-raters", raters, () => [
      barList(raters.map(([name, n, skipped]) => [skipped ? `${name} (${skipped} skipped)` : name, n]), "Nobody has compared yet."),
    ]);
  }

  /** Paints one part anew when its numbers changed; the focus stays on the same button. */
  part(id, data, build) {
    const text = JSON.stringify(data);
    if (this.painted[id] === text) return;
    this.painted[id] = text;
    const focused = document.activeElement?.dataset.focusKey;
    byId(id).replaceChildren(...build());
    if (focused) [...byId(id).querySelectorAll("[data-focus-key]")].find((element) => element.dataset.focusKey === focused)?.focus();
  }

  raterRow(rater, overall) {
    const { name, ratings, skips, mean, std, drift, consistency, repeats } = rater;
    const active = rater.active !== false;
    const access = active ? make("button", { type: "button", class: "small quiet danger", "aria-label": `Shut out ${name}` }, "Shut out") : make("span", { class: "soft" }, "Shut out");
    if (active) {
      access.dataset.focusKey = name;
      access.addEventListener("click", () => this.askShut(name));
    }
    const pairs = repeats ? make("small", { class: "soft" }, count(repeats.pairs, "repeat", "repeats")) : "";
    return make(
      "tr", { class: active ? "" : "is-out" },
      make("th", { scope: "row" }, name), number(ratings), number(rater.per_hour, 0), number(skips),
      make("td", {}, ...spread(mean, std, overall)),
      make("td", {}, ...driftMark(drift, rater.drift_interval ?? null)),
      make("td", { class: "number" }, fixed(consistency), pairs ? make("br") : "", pairs),
      make("td", { class: "number" }, access),
    );
  }

  // ------------------------------------------------------------------ what an admin does

  async invite(event) {
    event.preventDefault();
    const name = byId("invite-name").value.trim();
    const days = byId("invite-days").value === "" ? null : Number(byId("invite-days").value);
    if (!/^[\p{L}\p{N}_][\p{L}\p{M}\p{N}_ .@-]{0,63}$/u.test(name)) {
      return this.problem("Please give a name of letters, digits, spaces and . _ @ - that begins with a letter or a digit.", "invite-name");
    }
    if (byId("invite-days").validity.badInput || (days !== null && !(days > 0 && days <= 3650))) {
      return this.problem("Please give a number of days between 1 and 3650, or none.", "invite-days");
    }
    try {
      const { link } = await this.api.ask("POST", "/api/admin/raters", { name, crisis: byId("invite-crisis").checked, days });
      this.problem("");
      byId("invite").reset();
      byId("made-label").textContent = `The link of ${name}`;
      byId("made-link").value = link;
      byId("made").hidden = false;
      byId("made-copy").focus();
      view.say(`The link of ${name} is made.`);
      await this.refresh();
    } catch (problem) {
      this.problem(reason(problem));
    }
  }

  problem(text, field = null) {
    byId("invite-problem").textContent = text;
    byId("invite-problem").hidden = text === "";
    if (field) byId(field).focus();
  }

  askShut(name) {
    this.leaving = name;
    byId("shut-title").textContent = `Shut out ${name}?`;
    byId("shut-dialog").showModal();
    byId("shut-cancel").focus();
  }

  async shut() {
    byId("shut-dialog").close();
    try {
      await this.api.ask("POST", `/api/admin/raters/${encodeURIComponent(this.leaving)}/shut`, {});
      view.toast(`${this.leaving} is shut out.`);
      await this.refresh();
    } catch (problem) {
      complain(reason(problem));
    }
  }

  /** The token must go along in a header, which a plain link cannot do: fetch first, then hand the file over. */
  async download(button) {
    const kind = button.dataset.export;
    button.disabled = true;
    try {
      const answer = await this.api.fetch("GET", `/api/admin/export?as=${kind}`);
      const address = URL.createObjectURL(await answer.blob());
      const named = /filename="?([^";]+)"?/.exec(answer.headers.get("Content-Disposition") ?? "");
      make("a", { href: address, download: named ? named[1] : `ratings-${kind}.${EXTENSIONS[kind]}` }).click();
      setTimeout(() => URL.revokeObjectURL(address), 60_000);
      view.toast("The file is in your downloads.");
    } catch (problem) {
      complain(reason(problem));
    } finally {
      button.disabled = false;
      button.focus();
    }
  }

  listen() {
    byId("invite").addEventListener("submit", (event) => this.invite(event));
    byId("made-copy").addEventListener("click", async () => {
      const copied = await copyText(byId("made-link").value);
      if (!copied) byId("made-link").select();
      view.toast(copied ? "The link is copied." : "Press Ctrl C to copy the marked link.");
    });
    byId("shut-confirm").addEventListener("click", () => this.shut());
    byId("shut-cancel").addEventListener("click", () => byId("shut-dialog").close());
    for (const button of document.querySelectorAll("[data-export]")) button.addEventListener("click", () => this.download(button));
  }
}

function reason(problem) {
  if (problem instanceof Refused || problem instanceof Unreachable) return problem.message;
  throw problem;
}

function complain(text) {
  view.banner(text, { tone: "warn", actions: [["Dismiss", view.noBanner]] });
  view.alertAloud(text);
}

// ---------------------------------------------------------------------- numbers and their words

/** "0.31", "−0.12"; never "−0.00". */
function fixed(value, digits = 2) {
  if (value === null || value === undefined) return NONE;
  const text = Math.abs(value).toFixed(digits);
  return value < 0 && Number(text) !== 0 ? `−${text}` : text;
}

const number = (value, digits = 0) => make("td", { class: "number" }, fixed(value, digits));
const inWords = (name) => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");
const byTier = ([a], [b]) => Object.keys(TIERS).indexOf(a) - Object.keys(TIERS).indexOf(b);

function tiles(queue, all, perHour) {
  const day = perHour.slice(-24).reduce((sum, [, n]) => sum + n, 0);
  return [
    ["Waiting", String(queue.open)], ["In work", String(queue.leased)],
    ["Longest wait", queue.oldest_s === null || queue.oldest_s === undefined ? NONE : duration(queue.oldest_s)],
    ["Ratings, last 24 hours", String(day)], ["Ratings in all", String(all)],
  ].map(([title, value]) => make("div", {}, make("dt", {}, title), make("dd", {}, value)));
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129_600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} days`;
}

/** The mean over all ratings: what one rater's mean is compared with. */
function meanOf(raters) {
  const rated = raters.filter((rater) => rater.mean !== null && rater.ratings > 0);
  const n = rated.reduce((sum, rater) => sum + rater.ratings, 0);
  return n ? rated.reduce((sum, rater) => sum + rater.mean * rater.ratings, 0) / n : null;
}

function spread(mean, std, overall) {
  if (mean === null) return [NONE];
  const words = `Mean ${fixed(mean)}, standard deviation ${fixed(std)}; all raters ${fixed(overall)}.`;
  const chart = intervalMark({ value: mean, low: mean - (std ?? 0), high: mean + (std ?? 0), from: 0, to: 1, mark: overall, words });
  return [make("div", { class: "marked" }, chart, make("span", { "aria-hidden": "true" }, fixed(mean)))];
}

function driftMark(drift, interval) {
  if (drift === null) return [NONE];
  const [low, high] = interval ?? [null, null];
  // An interval on one side of zero is more than chance: worth a look, where it is more than a rounding.
  const sure = low !== null && (low > 0 || high < 0) && Math.abs(drift) >= 0.01;
  const text = `${drift >= 0.005 ? "+" : ""}${fixed(drift)}`;
  const words = `${text} in a hundred ratings${sure ? ", more than chance" : ""}.`;
  const chart = intervalMark({ value: drift, low, high, from: -0.3, to: 0.3, mark: 0, words, tone: sure ? "is-sure" : "" });
  return [make("div", { class: "marked" }, chart, make("span", { "aria-hidden": "true" }, text))];
}

function agreementRows(agreement) {
  if (!agreement) return [make("p", { class: "soft" }, "Not known yet: two replies with two raters each are needed.")];
  const rows = COEFFICIENTS.map(([key, name, meaning]) => {
    const told = agreement[key];
    const title = make("div", { class: "agreement-name" }, make("strong", {}, name), make("span", { class: "soft" }, meaning));
    if (!told || told.value === null) return make("div", { class: "agreement-row" }, title, make("span", { class: "soft" }, NONE));
    const { value, low, high } = told;
    const words = `${name}: ${fixed(value)}, interval ${fixed(low)} to ${fixed(high)}.`;
    const chart = intervalMark({ value, low, high, from: -0.2, to: 1, mark: 0, words });
    return make(
      "div", { class: "agreement-row" }, title,
      make("div", { class: "marked" }, chart, make("span", { "aria-hidden": "true" }, make("strong", {}, fixed(value)), ` (${fixed(low)} to ${fixed(high)})`)),
    );
  });
  return rows;
}

function begin() {
  const token = tokenOf(window.location);
  window.addEventListener("hashchange", () => window.location.reload());
  if (token !== null) new AdminPage(token).start();
  else view.close("Please open the admin’s link", "It was printed when the service started, and ends in a # and a long row of letters and digits.");
}

begin();
