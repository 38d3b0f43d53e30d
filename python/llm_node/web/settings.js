// @ts-check
/** What the reader chooses. */
import { html, useId } from "./vendor/preact.js";
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

export function SettingsView() {
  const themes = { auto: say("themeAuto"), light: say("themeLight"), dark: say("themeDark") };
  return html`<h2>${say("settings")}</h2>
    <${Choice} label=${say("theme")} choice=${theme} options=${themes} />
    <${Choice} label=${say("language")} choice=${language} options=${{ en: "English", ja: "日本語" }} />
    <p>${say("privacy")}</p>`;
}
