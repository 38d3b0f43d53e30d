// @ts-check
/** Figures as people read them. */

/** @param {number | null | undefined} bytes */
export function size(bytes) {
  if (typeof bytes !== "number") return "?";
  if (bytes >= 2 ** 30) return `${(bytes / 2 ** 30).toFixed(1)} GiB`;
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** @param {number | null | undefined} value */
export function count(value) {
  return typeof value === "number" ? value.toLocaleString("en") : "?";
}
