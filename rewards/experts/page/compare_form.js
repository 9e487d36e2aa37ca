// The form of one comparison: which reply is better, red flags of both, a reason. It knows nothing of the service.

import { make, printable } from "./dom.js";

export const STEPS = ["A is better", "A is slightly better", "About the same", "B is slightly better", "B is better"];
const SIDES = ["a", "b"];

export class CompareForm {
  #steps;
  #rows; // a flag each: {name, a: box, b: box}
  #places;
  #onChange;

  /** `places` are the elements to fill: {steps, choiceSet, flags, flagSet, reason}; `onChange()` follows every change by the rater. */
  constructor(flags, places, onChange) {
    this.#places = places;
    this.#onChange = onChange;
    this.#steps = STEPS.map((words, i) => make("input", { type: "radio", name: "choice", id: `choice-${i + 1}`, value: i + 1 }));
    places.steps.replaceChildren(...this.#steps.map((input, i) => stepElement(input, STEPS[i], i + 1)));
    this.#rows = flags.map(({ name, title }, i) => flagRow(name, title, i + 1));
    places.flags.replaceChildren(...this.#rows.map((row) => row.element));
    for (const box of [places.steps, places.flags]) {
      box.addEventListener("change", () => {
        this.missing = false;
        onChange();
      });
    }
    places.flagSet.addEventListener("keydown", (event) => this.#flagKey(event));
    places.reason.addEventListener("input", onChange);
  }

  /** 1 to 5, from "A is better" to "B is better"; null where nothing is chosen. */
  get choice() {
    const chosen = this.#steps.findIndex((input) => input.checked);
    return chosen < 0 ? null : chosen + 1;
  }

  /** Chooses a step as a click would; false where there is none of this number. */
  choose(number) {
    const input = this.#steps[number - 1];
    if (!input) return false;
    input.checked = true;
    input.focus();
    this.missing = false;
    this.#onChange();
    return true;
  }

  read() {
    const raised = (side) => this.#rows.filter((row) => row[side].checked).map((row) => row.name);
    return { choice: this.choice, flags_a: raised("a"), flags_b: raised("b"), reason: printable(this.#places.reason.value) };
  }

  /** Fills the form, or empties it when there is nothing. Tells nobody. */
  write(draft) {
    this.#steps.forEach((input, i) => (input.checked = draft?.choice === i + 1));
    for (const side of SIDES) {
      const raised = new Set(draft?.[`flags_${side}`] ?? []);
      for (const row of this.#rows) row[side].checked = raised.has(row.name);
    }
    this.#places.reason.value = draft?.reason ?? "";
    this.missing = false;
  }

  /** True when the rater has entered anything at all. */
  isTouched(draft) {
    return draft.choice !== null || draft.flags_a.length + draft.flags_b.length > 0 || draft.reason !== "";
  }

  set missing(is) {
    this.#places.choiceSet.classList.toggle("is-missing", is);
    for (const input of this.#steps) input.setAttribute("aria-invalid", String(is));
  }

  /** To the chosen step, or the first. */
  focusChoice() {
    (this.#steps.find((input) => input.checked) ?? this.#steps[0]).focus();
  }

  focusFlags(side) {
    this.#rows[0]?.[side].focus();
    this.#places.flagSet.scrollIntoView({ block: "nearest" });
  }

  focusReason() {
    this.#places.reason.focus();
    this.#places.reason.scrollIntoView({ block: "nearest" });
  }

  /** Nothing can be changed while a judgement is on its way. */
  set locked(is) {
    for (const box of [this.#places.choiceSet, this.#places.flagSet, this.#places.reason.parentElement]) box.inert = is;
  }

  /** Among the flags a digit ticks the box of that number on the same side; arrows walk up, down and across. */
  #flagKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const at = this.#rows.findIndex((row) => SIDES.some((side) => row[side] === event.target));
    if (at < 0) return;
    const side = SIDES.find((one) => this.#rows[at][one] === event.target);
    const ticked = /^[1-9]$/.test(event.key) ? this.#rows[Number(event.key) - 1]?.[side] : undefined;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const across = { ArrowLeft: "a", ArrowRight: "b" }[event.key];
    if (ticked) {
      ticked.focus();
      ticked.checked = !ticked.checked;
      this.#onChange();
    } else if (step) this.#rows[(at + step + this.#rows.length) % this.#rows.length][side].focus();
    else if (across) this.#rows[at][across].focus();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

function stepElement(input, words, number) {
  const digit = make("kbd", { "aria-hidden": "true" }, String(number));
  return make("label", { class: "step", for: input.id }, input, make("span", {}, words), digit);
}

function flagRow(name, title, number) {
  const boxOf = (side) => make("input", { type: "checkbox", id: `flag-${side}-${name}`, "aria-label": `Reply ${side.toUpperCase()}: ${title}` });
  const [a, b] = SIDES.map(boxOf);
  const labelOf = (side, box) => make("label", { class: "flag-box", for: box.id }, box, make("span", { "aria-hidden": "true" }, side));
  const digit = make("kbd", { "aria-hidden": "true" }, String(number));
  const element = make("div", { class: "flag-pair" }, make("span", {}, digit, title), labelOf("A", a), labelOf("B", b));
  return { name, a, b, element };
}
