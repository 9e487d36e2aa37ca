// The whole form of one rating: sliders, red flags, reason. It knows nothing of the service.

import { make, printable } from "./dom.js";
import { Slider } from "./slider.js";

export class RatingForm {
  #flags;
  #flagSet;
  #reason;
  #sliderBox;

  /** `places` are the elements to fill: {sliders, flags, flagSet, reason}; `onChange()` follows every change by the rater. */
  constructor(form, places, onChange) {
    this.#flagSet = places.flagSet;
    this.#reason = places.reason;
    this.#sliderBox = places.sliders;
    this.sliders = [...form.criteria, form.overall].map((criterion, i) => new Slider(criterion, i + 1, onChange));
    this.overall = this.sliders[this.sliders.length - 1];
    this.overall.element.classList.add("is-overall");
    places.sliders.replaceChildren(...this.sliders.map((slider) => slider.element));
    this.#flags = form.flags.map((flag, i) => ({ name: flag.name, title: flag.title, ...flagBox(flag, i + 1) }));
    places.flags.replaceChildren(...this.#flags.map((flag) => flag.element));
    places.flags.addEventListener("change", onChange);
    places.flagSet.addEventListener("keydown", (event) => this.#flagKey(event, onChange));
    places.reason.addEventListener("input", onChange);
  }

  /** What the rater has entered so far: sliders that were not touched are null. */
  read() {
    const criteria = this.sliders.filter((slider) => slider !== this.overall);
    return {
      criteria: Object.fromEntries(criteria.map((slider) => [slider.criterion.name, slider.value])),
      overall: this.overall.value,
      flags: this.#flags.filter((flag) => flag.box.checked).map((flag) => flag.name),
      reason: printable(this.#reason.value),
    };
  }

  /** Fills the form from a draft, or empties it when there is none. Tells nobody. */
  write(draft) {
    const criteria = draft?.criteria ?? {};
    for (const slider of this.sliders) {
      slider.value = slider === this.overall ? (draft?.overall ?? null) : (criteria[slider.criterion.name] ?? null);
      slider.missing = false;
    }
    const raised = new Set(draft?.flags ?? []);
    for (const flag of this.#flags) flag.box.checked = raised.has(flag.name);
    this.#reason.value = draft?.reason ?? "";
  }

  /** True when the rater has entered anything at all. */
  isTouched(draft) {
    const numbers = [...Object.values(draft.criteria), draft.overall];
    return numbers.some((value) => value !== null) || draft.flags.length > 0 || draft.reason !== "";
  }

  /** The sliders that still wait for a value. */
  missing() {
    return this.sliders.filter((slider) => slider.value === null);
  }

  /** The first unrated slider after the one in focus, round the end; null when all are rated. */
  nextMissing(active) {
    const at = this.sliders.findIndex((slider) => slider.has(active));
    const inOrder = [...this.sliders.slice(at + 1), ...this.sliders.slice(0, at + 1)];
    return inOrder.find((slider) => slider.value === null) ?? null;
  }

  isSlider(element) {
    return this.sliders.some((slider) => slider.has(element));
  }

  focusFlags() {
    this.#flags[0]?.box.focus();
    this.#flagSet.scrollIntoView({ block: "nearest" });
  }

  focusReason() {
    this.#reason.focus();
    this.#reason.scrollIntoView({ block: "nearest" });
  }

  /** Nothing can be changed while a rating is on its way. */
  set locked(is) {
    for (const box of [this.#sliderBox, this.#flagSet, this.#reason.parentElement]) box.inert = is;
  }

  /** The entries as plain text, for a rater who wants to keep them. */
  inWords(draft) {
    const lines = this.sliders.map((slider) => {
      const value = slider === this.overall ? draft.overall : draft.criteria[slider.criterion.name];
      return `${slider.criterion.title}: ${value === null || value === undefined ? "not rated" : value.toFixed(2)}`;
    });
    const raised = this.#flags.filter((flag) => draft.flags.includes(flag.name)).map((flag) => flag.title);
    if (raised.length) lines.push(`Red flags: ${raised.join("; ")}`);
    if (draft.reason) lines.push(`Reason: ${draft.reason}`);
    return lines.join("\n");
  }

  /** Among the flags a digit ticks the box of that number, and the arrows walk. */
  #flagKey(event, onChange) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const at = this.#flags.findIndex((flag) => flag.box === event.target);
    if (at < 0) return;
    const down = event.key === "ArrowDown" || event.key === "ArrowRight";
    const up = event.key === "ArrowUp" || event.key === "ArrowLeft";
    if (/^[1-9]$/.test(event.key) && this.#flags[Number(event.key) - 1]) {
      const { box } = this.#flags[Number(event.key) - 1];
      box.focus();
      box.checked = !box.checked;
      onChange();
    } else if (down || up) {
      this.#flags[(at + (down ? 1 : -1) + this.#flags.length) % this.#flags.length].box.focus();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

function flagBox(flag, number) {
  const id = `flag-${flag.name}`;
  const box = make("input", { type: "checkbox", id, name: flag.name });
  const digit = make("kbd", { "aria-hidden": "true" }, String(number));
  return { box, element: make("label", { class: "flag", for: id }, box, make("span", {}, flag.title), digit) };
}
