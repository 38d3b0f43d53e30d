// @ts-check
/** What has gone wrong on the node lately. */
import { html, signal, useEffect } from "./vendor/preact.js";
import { call } from "./api.js";
import { Problem, failed, problem } from "./problems.js";
import { say } from "./preferences.js";

/** @typedef {keyof typeof import("./words.js").LANGUAGES.en} Word */

/** In words; what the node may say, and the page does not know, stands there as it is. @type {Record<string, Word>} */
const KINDS = {
  load_failed: "loadFailed",
  refused: "refused",
  crashed: "crashed",
  evicted: "evicted",
  pressure: "pressure",
  cut: "cut",
  overrun: "overrun",
  kept: "kept",
  abandoned: "abandoned",
  device_lost: "deviceLost",
};

/** @type {import("./vendor/preact.js").Signal<any[] | null>} the newest first */
const incidents = signal(null);

async function look() {
  try {
    incidents.value = (await call("GET", "/api/incidents")).incidents.reverse();
    problem.value = null;
  } catch (error) {
    failed(error);
  }
}

export function IncidentsView() {
  useEffect(() => void look(), []);
  const found = incidents.value;
  return html`<h2>${say("incidents")}</h2>
    <${Problem} />
    <p><button type="button" onClick=${look}>${say("refresh")}</button></p>
    ${found?.length === 0 && html`<p>${say("noIncidents")}</p>`}
    <ul class="cards">
      ${found?.map((it, index) => {
        const kind = KINDS[it.kind];
        const at = new Date(it.at * 1000);
        return html`<li key=${found.length - index}>
          <h3>${kind === undefined ? it.kind : say(kind)}${it.model_id ? ` · ${it.model_id}` : ""}</h3>
          <p class="quiet"><time datetime=${at.toISOString()}>${at.toLocaleString(say("locale"))}</time></p>
          <p>${it.message}</p>
          ${(it.engine || it.call || it.signal) &&
          html`<dl>
            ${it.engine && html`<dt>${say("engine")}</dt><dd>${it.engine}</dd>`}
            ${it.call && html`<dt>${say("engineCall")}</dt><dd>${it.call}</dd>`}
            ${it.signal && html`<dt>${say("signal")}</dt><dd>${it.signal}</dd>`}
          </dl>`}
          ${it.log.length > 0 &&
          html`<details>
            <summary>${say("lastLines")}</summary>
            <pre class="wide log" tabindex="0" role="region" aria-label=${say("lastLines")}>${it.log.join("\n")}</pre>
          </details>`}
        </li>`;
      })}
    </ul>`;
}
