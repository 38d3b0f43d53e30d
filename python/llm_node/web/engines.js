// @ts-check
/** The engines that were found, each with its verdict. */
import { html, signal, useEffect, useState } from "./vendor/preact.js";
import { call } from "./api.js";
import { copyText } from "./markdown.js";
import { Problem, failed, problem } from "./problems.js";
import { say } from "./preferences.js";

/** What to type where none works. It finds out what the machine needs. */
const INSTALL = "llm-node engine install";

/** @type {import("./vendor/preact.js").Signal<any[] | null>} */
const engines = signal(null);

/** @param {boolean} anew */
async function look(anew) {
  try {
    engines.value = (await call("GET", `/api/engines?refresh=${anew}`)).engines;
    problem.value = null;
  } catch (error) {
    failed(error);
  }
}

export function EnginesView() {
  useEffect(() => void look(false), []);
  const [isCopied, setCopied] = useState(false);
  const copy = () => void copyText(INSTALL).then(() => setCopied(true), failed);
  const found = engines.value;
  return html`<h2>${say("engines")}</h2>
    <${Problem} />
    <p><button type="button" onClick=${() => look(true)}>${say("refresh")}</button></p>
    ${found !== null &&
    !found.some((engine) => engine.status === "loaded") &&
    html`<p>${say(found.length === 0 ? "noEngines" : "noneWorks")} ${say("installEngine")}</p>
      <p><code>${INSTALL}</code> <button type="button" onClick=${copy}>${isCopied ? say("copied") : say("copy")}</button></p>`}
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
