// The shortcuts of the raters' pages. Keys that mean something in the field in focus are left to that field.

import { make } from "./dom.js";
import { singleKeys } from "./memory.js";

/** For the help dialog: what every page has. Keys, then what they do; each inner list is one chord or alternative. */
export const commonKeys = (answer) => [
  [["R"], "reason; Ctrl Enter submits, Esc leaves"],
  [["C"], "conversation, to scroll with the arrow keys"],
  [["S"], "skip, with a reason"],
  [["U"], `take back the last ${answer}`],
  [["?"], "this help"],
];

/** Which action a letter stands for, on every page. */
export const COMMON_LETTERS = { r: "reason", c: "conversation", s: "skip", u: "undo", "?": "help" };

export function keyRows(keys) {
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
export function listenToKeys(actions, letters) {
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
