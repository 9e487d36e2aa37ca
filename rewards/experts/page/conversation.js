// Shows a conversation: the client on the left, the therapist on the right.

import { byId, make } from "./dom.js";

const WHO = { client: "Client", therapist: "Therapist" };

/** Fills the pane of the conversation, shows the last turns first (they are what a reply answers), and offers the way to the start. */
export function showTurns(turns) {
  byId("turns").replaceChildren(...turns.map(turnElement));
  const history = byId("history");
  history.hidden = turns.length === 0;
  history.scrollTop = history.scrollHeight;
  offerStart();
}

function turnElement({ speaker, text }) {
  return make(
    "li", { class: `turn is-${speaker}` },
    make("span", { class: "speaker" }, WHO[speaker]), make("p", { dir: "auto" }, text),
  );
}

function offerStart() {
  const history = byId("history");
  byId("to-start").hidden = history.hidden || history.scrollTop < 8;
}

/** Called once: keeps the "From the beginning" button in step with the scrolling. */
export function watchScrolling() {
  const history = byId("history");
  history.addEventListener("scroll", offerStart, { passive: true });
  window.addEventListener("resize", offerStart);
  byId("to-start").addEventListener("click", () => {
    history.scrollTop = 0;
    history.focus();
  });
}
