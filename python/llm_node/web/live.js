// @ts-check
/** What the node is doing: figures of its metrics, every two seconds, for as long as a quarter of an hour. */
import { html, signal, useEffect, useRef } from "./vendor/preact.js";
import { text } from "./api.js";
import { count, size } from "./figures.js";
import { parse, point } from "./metrics.js";
import { Problem, failed, problem } from "./problems.js";
import { say, theme } from "./preferences.js";

/** @typedef {import("./metrics.js").Point} Point */
/** @typedef {keyof typeof import("./words.js").LANGUAGES.en} Word */

const LOOK_MS = 2000;
const KEPT = (15 * 60 * 1000) / LOOK_MS;
const HEIGHT = 140;

/** What lies between two lines of a chart of bytes, so that they stand at round figures: the powers of two. */
const BYTES = Array.from({ length: 50 }, (_, power) => 2 ** power);

const perSecond = (/** @type {number} */ value) => `${value < 100 ? value.toFixed(1) : count(Math.round(value))}/s`;
const plainly = (/** @type {number} */ value) => (Number.isInteger(value) ? String(value) : "");
const percent = (/** @type {number} */ value) => `${Math.round(value)} %`;
const time = (/** @type {number} */ seconds) => (seconds < 1 ? `${(seconds * 1000).toFixed(1)} ms` : `${seconds.toFixed(2)} s`);

/**
 * @type {{title: Word, shown: (value: number) => string, steps?: number[], lines: {word: Word, of: Exclude<keyof Point, "at">}[]}[]}
 */
const CHARTS = [
  { title: "speed", shown: perSecond, lines: [{ word: "written", of: "written" }, { word: "readIn", of: "read" }] },
  { title: "requests", shown: plainly, lines: [{ word: "running", of: "running" }, { word: "queued", of: "waiting" }] },
  { title: "firstToken", shown: time, lines: [{ word: "half", of: "first50" }, { word: "most", of: "first95" }] },
  { title: "nextToken", shown: time, lines: [{ word: "half", of: "next50" }, { word: "most", of: "next95" }] },
  { title: "cells", shown: percent, lines: [{ word: "used", of: "cells" }] },
  { title: "memory", shown: size, steps: BYTES, lines: [{ word: "ofModels", of: "memory" }] },
];

/** @type {import("./vendor/preact.js").Signal<Point[]>} */
const points = signal([]);
/** @type {{at: number, reading: import("./metrics.js").Reading} | null} */
let last = null;
let timer = 0;

async function look() {
  try {
    const reading = parse(await text("/metrics"));
    const at = Date.now() / 1000;
    points.value = [...points.value, point(last?.reading ?? null, reading, at, at - (last?.at ?? 0))].slice(-KEPT);
    last = { at, reading };
    problem.value = null;
  } catch (error) {
    failed(error);
  }
}

/** What the charts are laid out by. */
function style() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = new URL("./vendor/chart.css", import.meta.url).href;
  document.head.append(link);
}

/** @param {number} seconds */
function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString(say("locale"), { hour12: false });
}

/** Once it was looked at, it goes on in other views too, while the page is seen. */
function begin() {
  if (timer !== 0) return;
  style();
  void look();
  timer = setInterval(() => document.visibilityState === "visible" && void look(), LOOK_MS);
}

export function LiveView() {
  useEffect(begin, []);
  const newest = points.value.at(-1);
  return html`<h2>${say("live")}</h2>
    <${Problem} />
    <div class="charts" tabindex="0" role="region" aria-label=${say("live")}>
      ${CHARTS.map(
        (chart) => html`<section key=${chart.title} aria-label=${say(chart.title)}>
          <h3>${say(chart.title)}</h3>
          <${Chart} lines=${chart.lines} shown=${chart.shown} steps=${chart.steps} />
          <dl>
            ${chart.lines.map(({ word, of }, index) => {
              const value = newest?.[of];
              return html`<dt key=${`${of}-name`} class="line${index}">${say(word)}</dt>
                <dd key=${of}>${typeof value === "number" ? chart.shown(value) : "-"}</dd>`;
            })}
          </dl>
        </section>`,
      )}
    </div>`;
}

/**
 * For eyes; what is newest stands below in words.
 * @param {{lines: {of: Exclude<keyof Point, "at">}[], shown: (value: number) => string, steps?: number[]}} properties
 */
function Chart({ lines, shown, steps }) {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const plot = useRef(/** @type {any} */ (null));
  /** @returns {any} times, and the figures of each line */
  const columns = () => [points.value.map((it) => it.at), ...lines.map(({ of }) => points.value.map((it) => it[of]))];
  useEffect(() => {
    const element = /** @type {HTMLElement} */ (box.current);
    let isGone = false;
    const watch = new ResizeObserver(() => plot.current?.setSize({ width: element.clientWidth, height: HEIGHT }));
    void import("./vendor/chart.js").then(({ default: Plot }) => {
      if (isGone) return;
      plot.current = new Plot(inColours(element, lines.length, shown, steps), columns(), element);
      watch.observe(element);
    });
    return () => {
      isGone = true;
      watch.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
  }, [theme.value]);
  useEffect(() => plot.current?.setData(columns()), [points.value]);
  return html`<div class="chart" ref=${box} aria-hidden="true"></div>`;
}

/** From nothing on. @param {any} _ @param {number} __ @param {number} most @returns {[number, number]} */
function range(_, __, most) {
  return [0, most || 1];
}

/**
 * In the colours of the page.
 * @param {HTMLElement} element @param {number} count @param {(value: number) => string} shown @param {number[]} [steps]
 */
function inColours(element, count, shown, steps) {
  const style = getComputedStyle(element);
  const colour = (/** @type {string} */ name) => style.getPropertyValue(name).trim();
  const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--soft"), width: 1 }, ticks: { show: false } };
  const strokes = [colour("--accent"), colour("--good")];
  return {
    width: element.clientWidth,
    height: HEIGHT,
    legend: { show: false },
    cursor: { show: false },
    scales: { y: { range } },
    axes: [{ ...axis, space: 80, values: (/** @type {any} */ _, /** @type {number[]} */ ticks) => ticks.map(clock) }, { ...axis, size: 70, ...(steps && { incrs: steps }), values: (/** @type {any} */ _, /** @type {number[]} */ ticks) => ticks.map(shown) }],
    series: [{}, ...strokes.slice(0, count).map((stroke) => ({ stroke, width: 2, spanGaps: true, points: { size: 4 } }))],
  };
}
