// Asks why a reply is skipped: one of a few reasons, or the rater's own words.

import { byId, make, printable } from "./dom.js";

const REASONS = [
  "It distresses me",
  "The text is broken or cut off",
  "I cannot judge this without more context",
  "I may know who this is about",
];
const OTHER = "Another reason";

export class SkipDialog {
  #dialog = byId("skip-dialog");

  /** `onSkip(reason)` is called when the rater has confirmed. */
  constructor(onSkip) {
    byId("skip-choices").replaceChildren(...[...REASONS, OTHER].map(choice));
    byId("skip-choices").addEventListener("change", () => this.#complain(false));
    byId("skip-cancel").addEventListener("click", () => this.#dialog.close());
    byId("skip-other").addEventListener("input", (event) => {
      if (event.target.value.trim() && !chosen()) radio(OTHER).checked = true;
    });
    byId("skip-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const reason = reasonGiven();
      this.#complain(reason === null);
      if (reason === null) return;
      this.#dialog.close();
      onSkip(reason);
    });
  }

  open() {
    for (const input of this.#dialog.querySelectorAll("input[type=radio]")) input.checked = false;
    byId("skip-other").value = "";
    this.#complain(false);
    this.#dialog.showModal();
    radio(REASONS[0]).focus();
  }

  #complain(is) {
    byId("skip-problem").textContent = is ? "Please choose a reason, or say it in your own words." : "";
    byId("skip-problem").hidden = !is;
  }
}

function choice(reason, i) {
  const id = `skip-reason-${i}`;
  return make("label", { class: "choice", for: id }, make("input", { type: "radio", name: "skip-reason", id, value: reason }), make("span", {}, reason));
}

const radio = (reason) => [...document.getElementsByName("skip-reason")].find((input) => input.value === reason);
const chosen = () => [...document.getElementsByName("skip-reason")].find((input) => input.checked);

/** The reason in one line; null when none was given. "Another reason" needs words. */
function reasonGiven() {
  const words = printable(byId("skip-other").value).trim();
  const reason = chosen()?.value ?? null;
  if (reason === null || reason === OTHER) return words || null;
  return words ? `${reason}: ${words}` : reason;
}
