// One criterion: a native range input that has no value until the rater gives it one.

import { make } from "./dom.js";

const NOT_YET = "not rated yet";
const TYPING_MS = 1200; // two digits typed within this time are one number
const STEP = 5;

/** A slider from 0 to 1 with words at its ends and its middle. `value` is null until it is set. */
export class Slider {
  #input;
  #shown;
  #anchors;
  #rated = false;
  #typed = "";
  #typedAt = 0;
  #onChange;

  /** `criterion` is as the service describes it, `key` the digit that chooses it; `onChange()` follows the rater's hand only. */
  constructor(criterion, key, onChange) {
    this.criterion = criterion;
    this.#onChange = onChange;
    const id = `slider-${criterion.name}`;
    this.#input = make("input", {
      type: "range", id, name: criterion.name, min: 0, max: 100, step: 1, value: 50,
      "aria-describedby": `${id}-anchors`, "aria-keyshortcuts": `${key} Shift+${key}`,
    });
    this.#shown = make("span", { class: "slider-value", "aria-hidden": "true" });
    this.#anchors = ["low", "middle", "high"].map((end, i) =>
      make("span", {}, make("span", { class: "sr-only" }, `${i / 2} means `), criterion[end], make("span", { class: "sr-only" }, ". ")),
    );
    this.element = make(
      "div", { class: "slider" },
      make(
        "div", { class: "slider-head" },
        make("kbd", { "aria-hidden": "true" }, String(key)), make("label", { for: id }, criterion.title), this.#shown,
      ),
      make("div", { class: "track" }, this.#input),
      make("div", { class: "anchors", id: `${id}-anchors` }, ...this.#anchors),
    );
    this.#listen();
    this.#paint();
  }

  get value() {
    return this.#rated ? Number(this.#input.value) / 100 : null;
  }

  set value(number) {
    this.#rated = number !== null && number !== undefined;
    this.#input.value = this.#rated ? String(Math.round(number * 100)) : "50";
    this.#typed = "";
    this.#paint();
  }

  /** Marks, or unmarks, the slider as the one that is still missing. */
  set missing(is) {
    this.element.classList.toggle("is-missing", is);
    if (is) this.#input.setAttribute("aria-invalid", "true");
    else this.#input.removeAttribute("aria-invalid");
  }

  focus() {
    this.#input.focus();
    this.element.scrollIntoView({ block: "nearest" });
  }

  has(element) {
    return element === this.#input;
  }

  #listen() {
    // A finger that scrolls the page across an untouched slider must not leave a rating behind.
    let before = null;
    this.#input.addEventListener("pointerdown", () => (before = this.value));
    this.#input.addEventListener("pointercancel", () => this.#change(before));
    this.#input.addEventListener("input", () => this.#touched());
    // A click exactly on the hidden thumb moves nothing, so there is no `input`: it is a rating of .5 all the same.
    this.#input.addEventListener("click", () => this.#rated || this.#touched());
    this.#input.addEventListener("keydown", (event) => this.#key(event));
    this.#input.addEventListener("blur", () => (this.#typed = ""));
  }

  #touched() {
    this.#rated = true;
    this.#paint();
    this.#onChange();
  }

  #change(number) {
    const typed = this.#typed;
    this.value = number;
    this.#typed = typed;
    this.#onChange();
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const now = this.#rated ? Number(this.#input.value) : null;
    let next;
    if (/^[0-9]$/.test(event.key)) next = this.#type(event.key);
    else if (event.key === "ArrowRight" || event.key === "ArrowUp") next = moved(now, event.shiftKey ? 1 : STEP);
    else if (event.key === "ArrowLeft" || event.key === "ArrowDown") next = moved(now, event.shiftKey ? -1 : -STEP);
    else if (event.key === "PageUp") next = moved(now, 10);
    else if (event.key === "PageDown") next = moved(now, -10);
    else if (event.key === "Home") next = 0;
    else if (event.key === "End") next = 100;
    else if (event.key === "Backspace" || event.key === "Delete") next = null;
    else return;
    if (!/^[0-9]$/.test(event.key)) this.#typed = "";
    event.preventDefault();
    event.stopPropagation();
    this.#change(next === null ? null : next / 100);
  }

  /** 7 is .7, 7 and 5 are .75, 1 and 0 are 1: ".10" is what a lone 1 says already. */
  #type(digit) {
    const late = Date.now() - this.#typedAt > TYPING_MS;
    this.#typed = late || this.#typed.length !== 1 ? digit : this.#typed + digit;
    this.#typedAt = Date.now();
    if (this.#typed === "10") return 100;
    return Number(this.#typed) * (this.#typed.length === 1 ? 10 : 1);
  }

  #paint() {
    const value = this.value;
    this.element.classList.toggle("is-unset", value === null);
    if (value !== null) this.missing = false;
    this.#shown.textContent = value === null ? NOT_YET : value.toFixed(2);
    this.#input.setAttribute("aria-valuetext", value === null ? NOT_YET : inWords(value, this.criterion));
    this.#input.style.setProperty("--value", String(value ?? 0));
    const near = value === null ? -1 : Math.round(value * 2);
    this.#anchors.forEach((anchor, i) => anchor.classList.toggle("is-near", i === near));
  }
}

/** The first arrow key begins on the side it points to, a quarter from the end: beginning at .5 would pull towards .5. */
function moved(now, by) {
  if (now === null) return by > 0 ? 75 : 25;
  const next = Math.abs(by) === STEP ? Math.round((now + by) / STEP) * STEP : now + by;
  return Math.min(100, Math.max(0, next));
}

function inWords(value, { low, middle, high }) {
  const number = value.toFixed(2);
  if (value <= 0.1) return `${number}, ${low}`;
  if (value < 0.4) return `${number}, between “${low}” and “${middle}”`;
  if (value <= 0.6) return `${number}, ${middle}`;
  if (value < 0.9) return `${number}, between “${middle}” and “${high}”`;
  return `${number}, ${high}`;
}
