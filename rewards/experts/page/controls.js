// The controls that raters' pages have in common: buttons, settings and keys, and what each does to the page.

import { watchScrolling } from "./conversation.js";
import { byId } from "./dom.js";
import { COMMON_LETTERS, commonKeys, keyRows, listenToKeys } from "./keyboard.js";
import { singleKeys } from "./memory.js";

/** `page` is a `RaterPage` whose form is there. */
export function listenToControls(page) {
  listenToButtons(page);
  listenToSettings(page);
  listenToShortcuts(page);
  byId(page.kind.formId).addEventListener("submit", (event) => {
    event.preventDefault();
    page.submit();
  });
  watchScrolling();
}

function listenToButtons(page) {
  const actions = {
    agree: () => page.agree(),
    "warning-show": () => page.showItem(),
    "warning-skip": () => page.askSkip(),
    "warning-never": () => page.changeCrisis(false),
    undo: () => page.undo(),
    skip: () => page.askSkip(),
    "lost-next": () => page.giveUp(),
    "new-sitting": () => page.newSitting(),
    "empty-start": () => page.giveUp(),
    "open-help": () => page.openHelp(),
    "help-close": () => byId("help-dialog").close(),
    ...page.buttonActions,
  };
  for (const [id, action] of Object.entries(actions)) byId(id).addEventListener("click", action);
  for (const button of document.querySelectorAll(".undo-elsewhere")) button.addEventListener("click", () => page.undo());
}

function listenToSettings(page) {
  byId("set-crisis").addEventListener("change", (event) => page.changeCrisis(event.target.checked));
  byId("set-keys").addEventListener("change", (event) => {
    singleKeys.on = event.target.checked;
    page.paint();
  });
}

function listenToShortcuts(page) {
  const { keys, letters, words } = page.kind;
  byId("help-keys").replaceChildren(...keyRows([...keys, ...commonKeys(words.answer)]));
  const working = {
    ...page.formActions,
    reason: () => page.form.focusReason(),
    conversation: () => byId("history").focus(),
    leave: () => byId("work-title").focus({ preventScroll: true }),
  };
  const whileWorking = (action) => (argument) => page.isWorking && action(argument) !== false;
  const actions = {
    ...Object.fromEntries(Object.entries(working).map(([name, action]) => [name, whileWorking(action)])),
    advance: () => page.advance(),
    submit: () => page.submit(),
    skip: () => page.askSkip(),
    undo: () => page.undo(),
    help: () => page.openHelp(),
  };
  listenToKeys(actions, { ...letters, ...COMMON_LETTERS });
}
