// @ts-check
/**
 * Markdown of a model as elements. The only place of the page where text becomes HTML.
 *
 * HTML in an answer is text: it is shown, and does nothing. What marked makes passes DOMPurify, whose result is the
 * one thing that the page's policy (Trusted Types) lets into an element.
 */
import { DOMPurify, Lexer, Marked } from "./vendor/markdown.js";
import { BUDGET, later } from "./pieces.js";
import { say } from "./preferences.js";

const LINKS = /^(?:https?|mailto):/i;
/** Letters that are divided into blocks at once. */
const PIECE = 16_000;
const LONGEST_HIGHLIGHTED = 50_000;
/** Headings of an answer stand below those of the page. */
const HEADING_SHIFT = 3;

/** @param {string} text */
function escaped(text) {
  return text.replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);
}

const marked = new Marked({ gfm: true, breaks: true });
marked.use({
  extensions: [math("block", "display"), math("inline", "inline")],
  renderer: {
    html: ({ text }) => escaped(text),
    // A picture would tell its server that somebody reads: a link does so only when it is followed.
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text || href)}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + HEADING_SHIFT);
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
  },
});

/** `$$…$$` and `\[…\]`; `\(…\)`. A single `$` is a currency. @param {"block" | "inline"} level @param {string} kind */
function math(level, kind) {
  const pattern = level === "block" ? /^(?:\$\$([^$]{1,4000}?)\$\$|\\\[([\s\S]{1,4000}?)\\\])/ : /^\\\(([^\n]{1,1000}?)\\\)/;
  return {
    name: `math-${kind}`,
    level,
    start: (/** @type {string} */ source) => source.match(level === "block" ? /\$\$|\\\[/ : /\\\(/)?.index,
    tokenizer(/** @type {string} */ source) {
      const match = pattern.exec(source);
      return match ? { type: `math-${kind}`, raw: match[0], text: (match[1] ?? match[2] ?? "").trim() } : undefined;
    },
    renderer: (/** @type {any} */ token) => `<code class="math ${kind}">${escaped(token.text)}</code>`,
  };
}

DOMPurify.addHook("afterSanitizeAttributes", (/** @type {Element} */ node) => {
  if (node.localName !== "a") return;
  if (LINKS.test(node.getAttribute("href") ?? "")) {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer");
  } else {
    node.removeAttribute("href");
  }
});

/** Put HTML of a library into an element, as far as it is harmless. @param {Element} element @param {string} html */
function fill(element, html) {
  // A browser without Trusted Types takes the same as text.
  element.innerHTML = /** @type {any} */ (DOMPurify).sanitize(html, {
    RETURN_TRUSTED_TYPE: true,
    USE_PROFILES: { html: true, mathMl: true },
    FORBID_TAGS: ["style", "form", "input", "button", "textarea", "select", "svg", "iframe", "img", "picture", "audio",
      "video", "annotation", "annotation-xml", "dialog", "details"],
    FORBID_CONTENTS: ["annotation", "annotation-xml", "style"],
    FORBID_ATTR: ["style", "id", "name", "form", "tabindex", "popover"],
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
  });
  for (const each of element.querySelectorAll("table")) scrollable(each, wrapped(each));
  for (const each of element.querySelectorAll("pre")) scrollable(each, each);
  for (const each of element.querySelectorAll("code.math")) void typeset(each);
}

/** @param {Element} inner */
function wrapped(inner) {
  const box = document.createElement("div");
  inner.replaceWith(box);
  box.append(inner);
  return box;
}

/** What may be wider than the page is reached by keyboard. @param {Element} inner @param {HTMLElement} box */
function scrollable(inner, box) {
  box.classList.add("wide");
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", inner.localName);
}

/** @param {Element} element */
async function typeset(element) {
  const text = element.textContent ?? "";
  const { renderToString } = await import("./vendor/math.js");
  later(() => {
    const box = document.createElement("span");
    try {
      fill(box, renderToString(text, { output: "mathml", displayMode: element.classList.contains("display") }));
    } catch {
      return; // no TeX: it stays as it was written
    }
    element.replaceWith(box);
  });
}

/** A block of code, with what copies it. */
class CodeBlock {
  /** @param {string} language */
  constructor(language) {
    this.language = language;
    this.element = document.createElement("figure");
    this.element.className = "code";
    const caption = document.createElement("figcaption");
    const name = document.createElement("span");
    name.textContent = language;
    const copy = document.createElement("button");
    copy.type = "button";
    copy.textContent = say("copy");
    copy.addEventListener("click", async () => {
      await copyText(this.code.textContent ?? "");
      copy.textContent = say("copied");
    });
    caption.append(name, copy);
    const box = document.createElement("pre");
    scrollable(box, box);
    box.setAttribute("aria-label", language || "code");
    this.code = document.createElement("code");
    box.append(this.code);
    this.element.append(caption, box);
    this.text = "";
  }

  /** @param {string} text which begins as before, while it is written */
  show(text) {
    if (this.code.firstChild instanceof Text && text.startsWith(this.text)) {
      this.code.firstChild.appendData(text.slice(this.text.length));
    } else {
      this.code.textContent = text;
    }
    this.text = text;
  }

  async highlight() {
    if (this.language === "" || this.text.length > LONGEST_HIGHLIGHTED) return;
    const { default: hljs } = await import("./vendor/highlight.js");
    if (!hljs.getLanguage(this.language)) return;
    // Each in its turn: all that have waited for the library would come at once.
    later(() =>
      fill(this.code, hljs.highlight(this.text, { language: this.language, ignoreIllegals: true }).value),
    );
  }
}

/** Text that grows, shown in an element: what has ended is drawn once, and only the last block anew. */
export class Flow {
  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
    this.text = "";
    /** How much of it is drawn for good. */
    this.settled = 0;
    /** @type {any[]} blocks that are to be drawn */
    this.waiting = [];
    /** Do these reach to the end of the text? */
    this.isRead = false;
    this.frame = 0;
    this.done = false;
    /** @type {HTMLElement | null} */
    this.last = null;
    /** @type {CodeBlock | null} */
    this.code = null;
  }

  /** @param {string} text @param {boolean} done nothing more comes */
  show(text, done) {
    if (!text.startsWith(this.text.slice(0, this.settled))) {
      cancelAnimationFrame(this.frame);
      this.element.replaceChildren();
      Object.assign(this, { settled: 0, waiting: [], last: null, code: null, frame: 0 });
    }
    this.text = text;
    this.done = done;
    this.waiting = [];
    this.isRead = false;
    this.work();
  }

  /** Nothing is drawn any more. */
  end() {
    cancelAnimationFrame(this.frame);
  }

  work() {
    cancelAnimationFrame(this.frame);
    const end = performance.now() + BUDGET;
    while (!this.isRead || this.waiting.length > (this.done ? 0 : 1)) {
      if (this.waiting.length === 0) this.read();
      else this.settle(this.waiting.shift());
      if (performance.now() > end) {
        this.frame = requestAnimationFrame(() => this.work());
        return;
      }
    }
    if (this.waiting.length === 1) this.draw(this.waiting[0]);
  }

  /** Divide what comes next into blocks: a piece of it, since all of a long text would take too long. */
  read() {
    for (let length = PIECE; !this.isRead && this.waiting.length === 0; length *= 2) {
      const piece = this.text.slice(this.settled, this.settled + length);
      this.waiting = new Lexer({ ...marked.defaults }).blockTokens(piece, []);
      this.isRead = this.settled + length >= this.text.length;
      // The last one was cut, and the one before it may go on behind a blank line.
      if (!this.isRead) this.waiting.splice(-2);
    }
  }

  /** @param {any} token a block that has ended */
  settle(token) {
    this.draw(token);
    void this.code?.highlight();
    this.settled += token.raw.length;
    this.last = null;
    this.code = null;
  }

  /** @param {any} token */
  draw(token) {
    if (token.type === "space" || token.type === "def") return;
    if (token.type === "code") {
      const language = (token.lang ?? "").split(/\s/)[0].toLowerCase().slice(0, 30);
      if (this.code === null || this.code.language !== language) {
        this.code = new CodeBlock(language);
        this.place(this.code.element);
      }
      this.code.show(token.text);
      return;
    }
    this.code = null;
    const block = document.createElement("div");
    fill(block, /** @type {string} */ (marked.parse(token.raw)));
    this.place(block);
  }

  /** @param {HTMLElement} block in the place of what was the last one */
  place(block) {
    if (this.last === null) this.element.append(block);
    else this.last.replaceWith(block);
    this.last = block;
  }
}

/** @param {string} text */
export async function copyText(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  // Plain http from another machine has no clipboard.
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
