// The clock of a lease. It stays silent until the time nearly runs out.

const WARN_S = 60;
const WARN_SHARE = 0.25; // of a lease so short that a minute would be most of it

export class LeaseClock {
  #tell;
  #endsAt = 0;
  #length = 0;
  #renewedAt = 0;
  #timer = null;
  #state = "off";

  /** `tell` has `near(secondsLeft)`, every second; `far()` when there is time again; `over()` once. */
  constructor(tell) {
    this.#tell = tell;
    // A laptop that slept must not show an old time for up to a second after it wakes.
    document.addEventListener("visibilitychange", () => this.#state !== "off" && this.#tick());
  }

  /** The lease ends in `seconds`. `fresh` when it begins anew, otherwise it was renewed. */
  set(seconds, { fresh = false } = {}) {
    this.#endsAt = Date.now() + seconds * 1000;
    this.#renewedAt = Date.now();
    this.#length = fresh ? seconds : Math.max(this.#length, seconds);
    if (this.#state === "near" || this.#state === "over") this.#tell.far();
    this.#state = "far";
    clearInterval(this.#timer);
    this.#timer = setInterval(() => this.#tick(), 500);
  }

  stop() {
    clearInterval(this.#timer);
    this.#state = "off";
  }

  get isOver() {
    return this.#state === "over";
  }

  /** True when a third of the lease has gone by since it was last renewed: a rater who is at work should renew it. */
  get wantsRenewal() {
    const live = this.#state === "far" || this.#state === "near";
    return live && Date.now() - this.#renewedAt > (this.#length * 1000) / 3;
  }

  #tick() {
    const left = (this.#endsAt - Date.now()) / 1000;
    if (left <= 0 && this.#state !== "over") {
      this.#state = "over";
      clearInterval(this.#timer);
      this.#tell.over();
    } else if (left > 0 && left <= Math.min(WARN_S, this.#length * WARN_SHARE)) {
      this.#state = "near";
      this.#tell.near(Math.ceil(left));
    }
  }
}

/** "0:45". */
export const asClock = (seconds) => `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
