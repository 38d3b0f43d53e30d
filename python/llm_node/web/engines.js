// @ts-check
/** The engines that were found, each with its verdict. */
import { html, signal, useEffect } from "./vendor/preact.js";
import { Advice } from "./advice.js";
import { call } from "./api.js";
import { Problem, failed, problem } from "./problems.js";
import { say } from "./preferences.js";

/** @type {import("./vendor/preact.js").Signal<any[] | null>} */
const engines = signal(null);
/** @type {import("./vendor/preact.js").Signal<any[]>} */
const advice = signal([]);

/** @param {boolean} anew */
async function look(anew) {
  try {
    engines.value = (await call("GET", `/api/engines?refresh=${anew}`)).engines;
    advice.value = (await call("GET", "/api/system")).advice;
    problem.value = null;
  } catch (error) {
    failed(error);
  }
}

export function EnginesView() {
  useEffect(() => void look(false), []);
  const found = engines.value;
  return html`<h2>${say("engines")}</h2>
    <${Problem} />
    <p><button type="button" onClick=${() => look(true)}>${say("refresh")}</button></p>
    ${found !== null &&
    !found.some((engine) => engine.status === "loaded") &&
    html`<p>${say(found.length === 0 ? "noEngines" : "noneWorks")}</p>`}
    <${Advice} items=${advice.value} />
    <ul class="cards">
      ${found?.map(
        (engine) => html`<li key=${engine.path}>
          <h3>${engine.id} ${engine.version} <small>${engine.gpu_backend}</small></h3>
          <p class=${engine.status === "loaded" ? "" : "problem"}>${engine.error?.message ?? engine.status}</p>
          <p class="path">${engine.path}</p>
        </li>`,
      )}
    </ul>`;
}
