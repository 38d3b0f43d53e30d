// @ts-check
/** What `GET /metrics` says: the names that the page knows, how its text is read, and what two readings tell. Pure. */

/** As the node calls them. A test asks a running node for each. */
export const NAMES = {
  written: "vllm:generation_tokens_total",
  read: "vllm:prompt_tokens_total",
  running: "vllm:num_requests_running",
  waiting: "vllm:num_requests_waiting",
  first: "vllm:time_to_first_token_seconds_bucket",
  next: "vllm:request_time_per_output_token_seconds_bucket",
  cells: "llm_node_kv_cache_tokens",
  memory: "llm_node_device_bytes",
};

/** @typedef {{labels: Record<string, string>, value: number}} Sample */
/** @typedef {Map<string, Sample[]>} Reading */
/**
 * What is shown of a moment; null where nothing was to be measured.
 * @typedef {{at: number, written: number | null, read: number | null, running: number, waiting: number,
 *   first50: number | null, first95: number | null, next50: number | null, next95: number | null,
 *   cells: number | null, memory: number}} Point
 */

/** @param {string} text @returns {Reading} */
export function parse(text) {
  const known = new Set(Object.values(NAMES));
  /** @type {Reading} */
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = /^([\w:]+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (match?.[1] === undefined || !known.has(match[1])) continue;
    /** @type {Record<string, string>} */
    const labels = {};
    for (const label of (match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[label[1] ?? ""] = label[2] ?? "";
    const samples = found.get(match[1]) ?? [];
    samples.push({ labels, value: Number(match[3]) });
    found.set(match[1], samples);
  }
  return found;
}

/** Of all models, or of those samples that have this label. @param {Reading} reading @param {string} name @param {string} [what] */
function sum(reading, name, what) {
  const samples = reading.get(name) ?? [];
  const meant = what === undefined ? samples : samples.filter((sample) => sample.labels.what === what);
  return meant.reduce((all, sample) => all + sample.value, 0);
}

/**
 * A quantile of what came between two readings, out of a histogram's buckets; straight lines within each.
 * @param {Reading} before @param {Reading} after @param {string} name @param {number} part
 */
export function quantile(before, after, name, part) {
  /** @type {Map<number, number>} how many were at most so long */
  const below = new Map();
  const add = (/** @type {Reading} */ reading, /** @type {number} */ sign) => {
    for (const { labels, value } of reading.get(name) ?? []) {
      const bound = labels.le === "+Inf" ? Number.POSITIVE_INFINITY : Number(labels.le);
      below.set(bound, (below.get(bound) ?? 0) + sign * value);
    }
  };
  add(after, 1);
  add(before, -1);
  const bounds = [...below].sort(([a], [b]) => a - b);
  const count = bounds.at(-1)?.[1] ?? 0;
  if (count <= 0) return null;
  let [from, had] = [0, 0];
  for (const [bound, number] of bounds) {
    if (number >= part * count) {
      if (bound === Number.POSITIVE_INFINITY) return from;
      return from + ((bound - from) * (part * count - had)) / (number - had);
    }
    [from, had] = [bound, number];
  }
  return from;
}

/** @param {Reading | null} before @param {Reading} after @param {number} at seconds @param {number} seconds between both @returns {Point} */
export function point(before, after, at, seconds) {
  const rate = (/** @type {string} */ name) => {
    if (before === null) return null;
    // A model that was loaded anew, or another node, begins at nothing.
    return Math.max(0, sum(after, name) - sum(before, name)) / seconds;
  };
  const times = (/** @type {string} */ name, /** @type {number} */ part) =>
    before === null ? null : quantile(before, after, name, part);
  const capacity = sum(after, NAMES.cells, "capacity");
  return {
    at,
    written: rate(NAMES.written),
    read: rate(NAMES.read),
    running: sum(after, NAMES.running),
    waiting: sum(after, NAMES.waiting),
    first50: times(NAMES.first, 0.5),
    first95: times(NAMES.first, 0.95),
    next50: times(NAMES.next, 0.5),
    next95: times(NAMES.next, 0.95),
    cells: capacity === 0 ? null : (100 * sum(after, NAMES.cells, "used")) / capacity,
    memory: sum(after, NAMES.memory, "reserved"),
  };
}
