// @ts-check
/** What the reader of the page has chosen: language and theme, kept in this browser. */
import { effect, signal } from "./vendor/preact.js";
import { LANGUAGES } from "./words.js";

/** @param {string} key @param {string} usual */
function kept(key, usual) {
  const own = signal(localStorage.getItem(key) ?? usual);
  effect(() => localStorage.setItem(key, own.value));
  return own;
}

export const theme = kept("llm-node.theme", "auto");
export const language = kept("llm-node.language", navigator.language.startsWith("ja") ? "ja" : "en");

effect(() => {
  document.documentElement.dataset.theme = theme.value;
});
effect(() => {
  document.documentElement.lang = language.value;
});

/**
 * What the page says, by its key in words.js.
 * @param {keyof typeof LANGUAGES.en} key
 */
export function say(key) {
  return LANGUAGES[/** @type {"en" | "ja"} */ (language.value)]?.[key] ?? LANGUAGES.en[key];
}
