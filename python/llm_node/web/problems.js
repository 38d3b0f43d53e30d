// @ts-check
/** What went wrong last, and where it is said. */
import { html, signal } from "./vendor/preact.js";
import { ApiError } from "./api.js";
import { say } from "./preferences.js";

/** @type {import("./vendor/preact.js").Signal<string | null>} */
export const problem = signal(null);

/** In words. @param {unknown} error */
export function inWords(error) {
  if (error instanceof ApiError) return error.code === "unreachable" ? say("unreachable") : error.message;
  return String(error);
}

/** @param {unknown} error */
export function failed(error) {
  problem.value = inWords(error);
}

/** Is always there, so that what comes into it is read out. */
export function Problem() {
  return html`<div role="alert" class="problem">${problem.value}</div>`;
}
