// What is to be seen at a time: one view in the main part, a banner above it, a toast, and words for screen readers.

import { byId, make } from "./dom.js";

const TOAST_MS = 6000;
let toastTimer = null;

/** Shows one of the views (`data-view`) and moves the focus to its heading, so that it is read from its beginning. */
export function show(name) {
  for (const view of document.querySelectorAll("[data-view]")) view.hidden = view.dataset.view !== name;
  document.body.dataset.showing = name;
  window.scrollTo(0, 0);
  const heading = document.querySelector(`[data-view="${name}"] h1`);
  heading.focus({ preventScroll: true });
}

export const showing = () => document.body.dataset.showing;

/** A line above everything until it is taken away. `actions` are [label, function] pairs. */
export function banner(text, { tone = "info", actions = [] } = {}) {
  const box = byId("banner");
  box.dataset.tone = tone;
  byId("banner-text").textContent = text;
  // Buttons that stay the same are not replaced: the focus may be on one of them while a countdown runs.
  const labels = actions.map(([label]) => label).join("\n");
  const holder = byId("banner-actions");
  if (holder.dataset.labels !== labels || box.hidden) {
    holder.dataset.labels = labels;
    holder.replaceChildren(...actions.map(([label, act]) => button(label, act)));
  }
  box.hidden = false;
}

function button(label, act) {
  const element = make("button", { type: "button", class: "small" }, label);
  element.addEventListener("click", act);
  return element;
}

export function noBanner() {
  byId("banner").hidden = true;
}

/** A short word that goes away by itself. It is read aloud as well. */
export function toast(text) {
  const box = byId("toast");
  box.textContent = text;
  box.hidden = false;
  say(text);
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (box.hidden = true), TOAST_MS);
}

/** For screen readers, when they have finished their sentence. */
export function say(text) {
  byId("live").textContent = text;
}

/** For screen readers, at once. */
export function alertAloud(text) {
  byId("live-now").textContent = text;
}

/** The page for somebody who cannot go on here. */
export function close(title, text, detail = "") {
  byId("closed-title").textContent = title;
  byId("closed-text").textContent = text;
  byId("closed-detail").textContent = detail;
  byId("closed-detail").hidden = detail === "";
  document.title = title;
  noBanner();
  show("closed");
}

/** The page could not begin. The error goes on to the console, for whoever is asked for help. */
export function closeByError(problem) {
  closeByRefusal(problem);
  throw problem;
}

/** The page for a link whose token the service does not take. */
export function closeByRefusal(problem) {
  if (problem.status === 401) {
    close("This link does not work", "It may be incomplete: please open the whole link from your invitation again, or ask for a new one.");
  } else if (problem.status === 403) {
    close("This link is no longer valid", "It may have expired. Please ask the person who invited you for a new one. Your ratings are kept.", problem.message);
  } else {
    close("This page cannot go on", "Please load it again. If that does not help, tell the person who invited you what is written below.", problem.message);
  }
}
