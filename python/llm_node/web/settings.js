// @ts-check
/** What the reader chooses. */
import { useKey } from "./api.js";
import { html, useId, useState } from "./vendor/preact.js";
import { language, say, theme } from "./preferences.js";

/** @param {{label: string, choice: {value: string}, options: Record<string, string>}} properties */
function Choice({ label, choice, options }) {
  const id = useId();
  return html`<p>
    <label for=${id}>${label}</label>
    <select id=${id} value=${choice.value} onChange=${(/** @type {any} */ event) => (choice.value = event.target.value)}>
      ${Object.entries(options).map(([value, name]) => html`<option key=${value} value=${value}>${name}</option>`)}
    </select>
  </p>`;
}

/** Without one that is typed, the one that was used is forgotten. */
function Key() {
  const id = useId();
  const [typed, setTyped] = useState("");
  const [isKept, setKept] = useState(false);
  const [said, setSaid] = useState("");
  return html`<form
    onSubmit=${(/** @type {Event} */ event) => {
      event.preventDefault();
      useKey(typed.trim(), isKept);
      setSaid(say(typed.trim() === "" ? "keyForgotten" : "keyUsed"));
      setTyped("");
    }}
  >
    <label for=${id}>${say("apiKey")}</label>
    <input
      id=${id}
      type="password"
      autocomplete="off"
      value=${typed}
      onInput=${(/** @type {any} */ event) => setTyped(event.target.value)}
    />
    <p>
      <label>
        <input type="checkbox" checked=${isKept} onChange=${(/** @type {any} */ event) => setKept(event.target.checked)} />
        ${say("keepKey")}
      </label>
    </p>
    <div class="row"><button type="submit">${say(typed.trim() === "" ? "forgetKey" : "useKey")}</button></div>
    <p role="status">${said}</p>
  </form>`;
}

export function SettingsView() {
  const themes = { auto: say("themeAuto"), light: say("themeLight"), dark: say("themeDark") };
  return html`<h2>${say("settings")}</h2>
    <${Choice} label=${say("theme")} choice=${theme} options=${themes} />
    <${Choice} label=${say("language")} choice=${language} options=${{ en: "English", ja: "日本語" }} />
    <p>${say("privacy")}</p>
    <${Key} />`;
}
