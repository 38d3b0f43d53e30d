// @ts-check
/** The node's HTTP API as the page uses it. Every route here is one of docs/http.md. */

import { say } from "./preferences.js";

/** An error as the node answers it. */
export class ApiError extends Error {
  /** @param {string} code @param {string} message */
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/**
 * The JSON of an answer.
 * @param {string} method @param {string} path @param {object} [body] @returns {Promise<any>}
 */
export async function call(method, path, body) {
  const response = await send(method, path, body);
  return response.json();
}

/** The text of an answer. @param {string} path */
export async function text(path) {
  return (await send("GET", path)).text();
}

/**
 * The events of a stream. Ends without an error when `signal` stops it.
 * @param {string} path @param {object} body @param {AbortSignal} signal @returns {AsyncGenerator<any>}
 */
export async function* events(path, body, signal) {
  const response = await send("POST", path, body, signal);
  if (response.body === null) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const frames = (rest + value).split("\n\n");
    rest = frames.pop() ?? "";
    for (const frame of frames) {
      const line = frame.split("\n").find((each) => each.startsWith("data:"));
      const data = line?.slice(5).trim();
      if (data === undefined) continue;
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(event.error.code, event.error.message);
      yield event;
    }
  }
}

const KEY = "llm-node-key";

takeKeyOfAddress();

/** A link may bring a key behind `#`, where no server and no log sees it. It leaves the address at once. */
function takeKeyOfAddress() {
  const brought = new URLSearchParams(location.hash.slice(1)).get("key")?.trim();
  if (!brought) return;
  sessionStorage.setItem(KEY, brought);
  history.replaceState(null, "", location.pathname + location.search);
}

/** The key of this tab, else the one that this browser keeps. */
function ownKey() {
  return sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY);
}

/** @param {string} key none: it is forgotten @param {boolean} isKept in this browser, and not in this tab alone */
export function useKey(key, isKept) {
  sessionStorage.removeItem(KEY);
  localStorage.removeItem(KEY);
  if (key !== "") (isKept ? localStorage : sessionStorage).setItem(KEY, key);
}

/** As `ask`. A node that wants a key is asked again with one that is typed, and kept as long as the tab. */
async function send(/** @type {Parameters<typeof ask>} */ ...request) {
  for (;;) {
    const key = ownKey();
    try {
      return await ask(...request);
    } catch (error) {
      if (!(error instanceof ApiError) || error.code !== "invalid_api_key") throw error;
      if (ownKey() !== key) continue; // another request has asked meanwhile
      const typed = prompt(say("key"))?.trim();
      if (!typed) throw error;
      sessionStorage.setItem(KEY, typed);
    }
  }
}

/** @param {string} method @param {string} path @param {object} [body] @param {AbortSignal} [signal] */
async function ask(method, path, body, signal) {
  const key = ownKey();
  let response;
  try {
    // A proxy may serve the node below a path of its own.
    response = await fetch(new URL(`.${path}`, document.baseURI), {
      method,
      signal: signal ?? null,
      headers: {
        ...(body === undefined ? {} : { "Content-Type": "application/json" }),
        ...(key === null ? {} : { Authorization: `Bearer ${key}` }),
      },
      body: body === undefined ? null : JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("unreachable", "");
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  throw new ApiError(answer?.error?.code ?? "internal", answer?.error?.message ?? `HTTP ${response.status}`);
}
