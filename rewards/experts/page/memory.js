// What this browser tab remembers, so that nothing is lost when the page is reloaded or the network is gone.

const SETTING_KEYS = "attune/single-keys";

/** Storage may be switched off or full; rating must then go on without it. */
function attempt(action, otherwise) {
  try {
    return action();
  } catch {
    return otherwise;
  }
}

export class Memory {
  #prefix;

  /** Everything is kept under a piece of the token: another rater's link in the same tab sees nothing of it. So is what
   * belongs to another page of the same rater, under its name. */
  constructor(token, page = "") {
    this.#prefix = `attune/${page}${token.slice(0, 10)}`;
  }

  #get(name) {
    return attempt(() => JSON.parse(sessionStorage.getItem(`${this.#prefix}/${name}`)), null);
  }

  #set(name, value) {
    attempt(() => sessionStorage.setItem(`${this.#prefix}/${name}`, JSON.stringify(value)));
  }

  #drop(name) {
    attempt(() => sessionStorage.removeItem(`${this.#prefix}/${name}`));
  }

  get agreed() {
    return this.#get("agreed") === true;
  }

  agree() {
    this.#set("agreed", true);
  }

  /** The item in work: {lease, draft|null, submission, seconds, shown}; null when another one was kept. */
  item(lease) {
    const kept = this.#get("item");
    return kept?.lease === lease ? kept : null;
  }

  keepItem(item) {
    this.#set("item", item);
  }

  dropItem() {
    this.#drop("item");
  }

  /** A rating that was submitted and not yet acknowledged. */
  get pending() {
    return this.#get("pending");
  }

  keepPending(rating) {
    this.#set("pending", rating);
  }

  dropPending() {
    this.#drop("pending");
  }
}

/** A choice of this browser, not of the rater's account. On unless switched off. */
export const singleKeys = {
  get on() {
    return attempt(() => localStorage.getItem(SETTING_KEYS) !== "off", true);
  },
  set on(is) {
    attempt(() => localStorage.setItem(SETTING_KEYS, is ? "on" : "off"));
  },
};

/** A random identifier (UUID version 4). `crypto.randomUUID` is missing where the page is served without TLS. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
