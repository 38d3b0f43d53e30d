// @ts-check
/** The node's log. */
import { html, signal, useEffect } from "./vendor/preact.js";
import { call } from "./api.js";
import { Problem, failed, problem } from "./problems.js";
import { say } from "./preferences.js";

const LINES = 200;
/** @type {import("./vendor/preact.js").Signal<{time: number, level: string, logger: string, message: string}[]>} */
const lines = signal([]);

async function look() {
  try {
    lines.value = (await call("GET", `/api/logs?lines=${LINES}`)).lines;
    problem.value = null;
  } catch (error) {
    failed(error);
  }
}

export function LogView() {
  useEffect(() => void look(), []);
  return html`<h2>${say("log")}</h2>
    <${Problem} />
    <p><button type="button" onClick=${look}>${say("refresh")}</button></p>
    <pre class="wide log" tabindex="0" role="region" aria-label=${say("log")}>
${lines.value.map((line) => `${new Date(line.time * 1000).toLocaleTimeString()} ${line.level} ${line.message}`).join("\n")}</pre
    >`;
}
