// The pair in work: its draft stays in this browser, and its lease is renewed by itself.

import { Refused, Unreachable } from "./api.js";
import { ItemInWork } from "./item_in_work.js";

export class CompareWork extends ItemInWork {
  #api;
  #renewing = false;
  #aside = null; // what was entered on a pair that waits while an earlier one is taken back: {a, b, draft}

  constructor(api, memory, form, page, one) {
    super(memory, form, page, one);
    this.#api = api;
  }

  draftOf(item, kept) {
    const aside = this.#aside?.a === item.a && this.#aside.b === item.b ? this.#aside.draft : null;
    if (aside) this.#aside = null;
    return super.draftOf(item, kept) ?? aside;
  }

  /** It comes again after the earlier one, under another lease, with what was entered. */
  putAside() {
    if (this.touched) this.#aside = { a: this.item.a, b: this.item.b, draft: this.form.read() };
  }

  /** Keeps the item: the time starts anew. Where nobody answers, the next sign of life tries again. */
  async renew() {
    if (this.#renewing || this.item === null) return;
    const { lease } = this.item;
    this.#renewing = true;
    try {
      const { expires_s: expiresS } = await this.#api.ask("POST", "/api/compare/renew", { lease });
      if (this.item?.lease === lease) this.clock.set(expiresS);
    } catch (problem) {
      const mine = this.item?.lease === lease && !this.page.busy;
      if (problem instanceof Refused && problem.isGone) {
        if (mine) this.page.lost(problem);
      } else if (problem instanceof Refused && problem.status !== 429) this.page.refused(problem);
      else if (!(problem instanceof Refused || problem instanceof Unreachable)) throw problem;
    } finally {
      this.#renewing = false;
    }
  }
}
