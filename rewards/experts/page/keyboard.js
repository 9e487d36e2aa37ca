// The shortcuts of the raters' pages. Keys that mean something in the field in focus are left to that field.

import { make } from "./dom.js";
import { singleKeys } from "./memory.js";

/** For the help dialog: keys, then what they do. Each inner list is one chord or alternative. */
export const KEYS = [
  [["1", "…", "5"], "choose a criterion"],
  [["6"], "or", ["0"], "choose “All in all”"],
  [["0", "…", "9"], "on a slider: set 0 to 0.9"],
  [["7", "5"], "on a slider: set 0.75 (two digits, typed quickly)"],
  [["1", "0"], "or", ["End"], "on a slider: set 1"],
  [["←", "→"], "on a slider: 0.05 less or more, with Shift 0.01"],
  [["Backspace"], "on a slider: back to “not rated yet”"],
  [["Shift", "3"], "choose a criterion while on a slider"],
  [["Enter"], "next unrated slider; when all are rated, submit"],
  [["F"], "red flags; then 1 to 8 or Space tick"],
  [["R"], "reason; Ctrl Enter submits, Esc leaves"],
  [["C"], "conversation, to scroll with the arrow keys"],
  [["S"], "skip, with a reason"],
  [["U"], "take back the last rating"],
  [["?"], "this help"],
];

/** Which action a letter stands for. */
export const LETTERS = { f: "flags", r: "reason", c: "conversation", s: "skip", u: "undo", "?": "help" };

export function keyRows(keys = KEYS) {
  return keys.map((row) => {
    const cell = make("th", { scope: "row" });
    for (const part of row.slice(0, -1)) {
      if (typeof part === "string") cell.append(` ${part} `);
      else for (const key of part) cell.append(key === "…" ? "–" : make("kbd", {}, key));
    }
    return make("tr", {}, cell, make("td", {}, row[row.length - 1]));
  });
}

/**
 * `actions` has a function for each of: choose(number), advance, submit, leave, and those that `letters` name.
 * Each returns false when it has nothing to do at present; the key is then left alone.
 */
export function listenToKeys(actions, letters = LETTERS) {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
    const action = actionOf(event, actions, letters);
    if (action && action() !== false) event.preventDefault();
  });
}

function actionOf(event, actions, letters) {
  const { target, key } = event;
  const writing = target instanceof HTMLTextAreaElement || (target instanceof HTMLInputElement && target.type === "text");
  if (key === "Enter" && (event.ctrlKey || event.metaKey)) return actions.submit;
  if (event.ctrlKey || event.metaKey || event.altKey) return null;
  if (key === "Escape") return actions.leave;
  if (writing) return null;
  // A button or a link in focus takes Enter for itself.
  if (key === "Enter") return event.repeat || target.closest("button, a, summary") ? null : actions.advance;
  if (event.repeat || !singleKeys.on) return null;
  if (/^[0-9]$/.test(key)) return () => actions.choose(Number(key));
  // Shift and a digit give different characters on different keyboards: the place of the key decides.
  const place = event.shiftKey && /^Digit([0-6])$/.exec(event.code);
  if (place) return () => actions.choose(Number(place[1]));
  return actions[letters[key.toLowerCase()]];
}
