// Building and finding elements. Text goes in by textContent alone, so that no text is ever read as markup.

export const byId = (id) => document.getElementById(id);

/** A new element: `make("p", { class: "soft", id: "x" }, "text", child, ...)`. Attributes of null or false are left out. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  set(element, attributes);
  for (const child of children) element.append(typeof child === "string" ? document.createTextNode(child) : child);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** The same for the parts of a drawing. */
export function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  set(element, attributes);
  for (const child of children) element.append(typeof child === "string" ? document.createTextNode(child) : child);
  return element;
}

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === false) continue;
    element.setAttribute(name, value === true ? "" : String(value));
  }
}

/** "1 reply", "3 replies". */
export const count = (n, one, many) => `${n} ${n === 1 ? one : many}`;

/** Text that was pasted may hold control characters, which the service refuses: they go, line breaks and tabs stay. */
export const printable = (text) => text.replace(/[^\P{Cc}\n\r\t]/gu, "");

/** The token of a link, from its fragment; null when there is none. One that is no token never leaves the page. */
export function tokenOf(location) {
  const token = location.hash.slice(1);
  return /^[A-Za-z0-9_-]+$/.test(token) ? token : null;
}

/** Copies text; true when it worked. Browsers offer the clipboard to safe origins only, hence the old way as well. */
export async function copyText(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // permission refused: try the old way
    }
  }
  const area = make("textarea", { class: "sr-only", "aria-hidden": "true", tabindex: "-1" });
  const before = document.activeElement;
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (before instanceof HTMLElement) before.focus();
  return copied;
}
