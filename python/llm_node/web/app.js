// @ts-check
/** The page: its frame, its views, and the keys that hold everywhere. */
import { html, render, signal, useEffect, useRef } from "./vendor/preact.js";
import { ChatView, beginChat, restoreChats, stopAnswer } from "./chat.js";
import { EnginesView } from "./engines.js";
import { IncidentsView } from "./incidents.js";
import { LiveView } from "./live.js";
import { LogView } from "./log.js";
import { ModelsView } from "./models.js";
import { say } from "./preferences.js";
import { SettingsView } from "./settings.js";

const VIEWS = /** @type {const} */ ({
  chat: ChatView,
  models: ModelsView,
  engines: EnginesView,
  live: LiveView,
  incidents: IncidentsView,
  log: LogView,
  settings: SettingsView,
});
/** @typedef {keyof typeof VIEWS} View */

const view = signal(viewOf(location.hash));
const help = signal(false);

/** @param {string} hash @returns {View} */
function viewOf(hash) {
  const name = hash.replace(/^#\/?/, "");
  return Object.hasOwn(VIEWS, name) ? /** @type {View} */ (name) : "chat";
}

addEventListener("hashchange", () => {
  view.value = viewOf(location.hash);
});

/** @param {KeyboardEvent} event */
function onKey(event) {
  if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    stopAnswer();
    return;
  }
  const target = /** @type {HTMLElement} */ (event.target);
  if (target.closest("input, textarea, select, dialog")) return;
  const names = /** @type {View[]} */ (Object.keys(VIEWS));
  const index = Number(event.key) - 1;
  if (event.key === "?") help.value = true;
  else if (event.key === "n") {
    location.hash = "#/chat";
    beginChat();
  } else if (names[index] !== undefined) location.hash = `#/${names[index]}`;
  else return;
  event.preventDefault();
}
addEventListener("keydown", onKey);

function Help() {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  useEffect(() => {
    if (help.value) dialog.current?.showModal();
  }, [help.value]);
  return html`<dialog ref=${dialog} aria-labelledby="keys" onClose=${() => (help.value = false)}>
    <h2 id="keys">${say("keys")}</h2>
    <ul>
      ${["keySend", "keyStop", "keyNew", "keyViews", "keyHelp"].map(
        (key) => html`<li key=${key}>${say(/** @type {any} */ (key))}</li>`,
      )}
    </ul>
    <button type="button" onClick=${() => dialog.current?.close()}>${say("close")}</button>
  </dialog>`;
}

function App() {
  const View = VIEWS[view.value];
  return html`
    <a class="skip" href="#content" onClick=${skip}>${say("skip")}</a>
    <header>
      <h1>llm-node</h1>
      <nav aria-label=${say("views")}>
        ${Object.keys(VIEWS).map(
          (name) => html`<a key=${name} href="#/${name}" aria-current=${view.value === name ? "page" : undefined}
            >${say(/** @type {View} */ (name))}</a
          >`,
        )}
      </nav>
      <button type="button" class="plain" aria-label=${say("keys")} onClick=${() => (help.value = true)}>?</button>
    </header>
    <main id="content" tabindex="-1" class=${view.value}><${View} /></main>
    <${Help} />
  `;
}

/** Not by the address, which says which view is shown. @param {Event} event */
function skip(event) {
  event.preventDefault();
  document.getElementById("content")?.focus();
}

const root = /** @type {HTMLElement} */ (document.getElementById("app"));
root.replaceChildren();
render(html`<${App} />`, root);
void restoreChats();
