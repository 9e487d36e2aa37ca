// Small drawings for the admin's page. Each says the same in words, for those who do not see it.

import { count, draw, make } from "./dom.js";

const HOUR_MS = 3_600_000;

/** A figure: `viewBox` of `width` x `height` units, `words` for screen readers. */
function figure(width, height, words, name, ...parts) {
  return draw("svg", { viewBox: `0 0 ${width} ${height}`, class: name, role: "img", "aria-label": words, preserveAspectRatio: "none" }, ...parts);
}

const line = (x1, y1, x2, y2, name) => draw("line", { x1, y1, x2, y2, class: name, "vector-effect": "non-scaling-stroke" });

/** Ratings by hour: `perHour` is [[seconds since 1970, ratings], ...], an hour apart. */
export function paceChart(perHour) {
  const most = Math.max(1, ...perHour.map(([, n]) => n));
  const total = perHour.reduce((sum, [, n]) => sum + n, 0);
  const width = perHour.length * 10;
  const bars = perHour.map(([at, n], i) =>
    draw(
      "rect", { x: i * 10 + 1.5, y: 100 - (n / most) * 100, width: 7, height: (n / most) * 100, class: "bar-mark" },
      draw("title", {}, `${hourWords(at)}: ${count(n, "rating", "ratings")}`),
    ),
  );
  const words = `${count(total, "rating", "ratings")} in ${count(perHour.length, "hour", "hours")}, at most ${most} in one.`;
  const chart = figure(width, 100, words, "pace", line(0, 100, width, 100, "axis"), ...bars);
  const ends = perHour.length ? [perHour[0][0], perHour[Math.floor(perHour.length / 2)][0], perHour.at(-1)[0]] : [];
  return [
    make("div", { class: "pace-most soft" }, `${total ? most : 0} at most`), chart,
    make("div", { class: "pace-times soft" }, ...ends.map((at) => make("span", {}, hourWords(at)))),
  ];
}

function hourWords(seconds) {
  const time = new Date(Math.floor((seconds * 1000) / HOUR_MS) * HOUR_MS);
  return time.toLocaleString([], { weekday: "short", hour: "2-digit", minute: "2-digit" });
}

/** Names with their counts as bars, the largest first. `rows` is [[label, n], ...]. */
export function barList(rows, nothing) {
  if (rows.length === 0) return make("p", { class: "soft" }, nothing);
  const most = Math.max(1, ...rows.map(([, n]) => n));
  const list = make("ul", { class: "bars" });
  for (const [label, n] of rows) {
    const bar = draw("svg", { viewBox: "0 0 100 8", class: "bar-line", "aria-hidden": "true", preserveAspectRatio: "none" });
    bar.append(draw("rect", { x: 0, y: 0, width: (n / most) * 100, height: 8, class: "bar-mark" }));
    list.append(make("li", {}, make("span", { class: "bar-label" }, label), bar, make("span", { class: "bar-number" }, String(n))));
  }
  return list;
}

/** A point and its interval on a scale from `from` to `to`, with a reference line at `mark` where there is one. */
export function intervalMark({ value, low, high, from, to, mark = null, words, tone = "" }) {
  const x = (number) => 6 + (188 * (Math.min(to, Math.max(from, number)) - from)) / (to - from);
  const parts = [line(6, 12, 194, 12, "axis")];
  if (mark !== null) parts.push(line(x(mark), 2, x(mark), 22, "reference"));
  if (low !== null && high !== null) parts.push(draw("rect", { x: x(low), y: 8.5, width: Math.max(1, x(high) - x(low)), height: 7, rx: 3.5, class: "interval" }));
  parts.push(draw("circle", { cx: x(value), cy: 12, r: 5, class: "point" }));
  const chart = draw("svg", { viewBox: "0 0 200 24", class: `interval-mark ${tone}`, role: "img", "aria-label": words });
  chart.append(...parts);
  return chart;
}
