// @ts-check
/** What the node lacks, and what to type for it on its machine. */
import { html, useState } from "./vendor/preact.js";
import { copyText } from "./markdown.js";
import { failed } from "./problems.js";
import { say } from "./preferences.js";

/** @type {Record<string, keyof typeof import("./words.js").LANGUAGES.en>} */
const WORDS = { no_engine: "installEngine", no_model: "pullModel", gpu_unused: "useGpu" };

/** @param {{items: any[]}} properties */
export function Advice({ items }) {
  return items.map((item) => html`<${Item} key=${item.code} item=${item} />`);
}

/** @param {{item: any}} properties */
function Item({ item }) {
  const [isCopied, setCopied] = useState(false);
  const copy = () => void copyText(item.command).then(() => setCopied(true), failed);
  const word = WORDS[item.code];
  return html`<p>${word === undefined ? item.text : say(word)}</p>
    <p><code>${item.command}</code> <button type="button" onClick=${copy}>${isCopied ? say("copied") : say("copy")}</button></p>`;
}
