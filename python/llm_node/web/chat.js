// @ts-check
/** The chat: a list of chats, the messages of one, and what is written next. */
import { batch, html, signal, useEffect, useId, useLayoutEffect, useRef, useState } from "./vendor/preact.js";
import { ApiError, call, events } from "./api.js";
import * as tree from "./chat_tree.js";
import { count } from "./figures.js";
import { Flow, copyText } from "./markdown.js";
import { Problem, failed, inWords, problem } from "./problems.js";
import { say } from "./preferences.js";
import * as store from "./store.js";

/**
 * @typedef {import("./store.js").Chat} Chat
 * @typedef {import("./store.js").Message} Message
 */

/** How often an answer under way is kept. */
const KEEP_MS = 500;
const UNDO_MS = 10_000;
/** Before that a speed says nothing. */
const SPEED_SECONDS = 0.5;
/** After `compositionend` some input methods send one more Enter. */
const IME_CODE = 229;
const LARGEST_FILE = 1 << 20;
/** Pixels from the end within which the reader is at it. */
const NEAR_END = 80;

/** @type {import("./vendor/preact.js").Signal<Chat[]>} */
const chats = signal([]);
const current = signal(tree.newChat(""));
/** One more whenever something in the current chat has changed. */
const changes = signal(0);
/**
 * The answer under way, when its first token came, and how many have come: a model that is loaded first is no slower
 * at writing.
 * @typedef {{message: Message, stop: AbortController, began: number, tokens: number}} UnderWay
 */
/** @type {import("./vendor/preact.js").Signal<UnderWay | null>} */
const underWay = signal(null);
/** One more with each frame of it. */
const frames = signal(0);
/**
 * Those that answer in words, each with its state; null until they are known.
 * @type {import("./vendor/preact.js").Signal<{model_id: string, status: string}[] | null>}
 */
const models = signal(null);
/** @type {import("./vendor/preact.js").Signal<Chat | null>} */
const deleted = signal(null);
/** What is read out. */
const announced = signal("");
const draft = signal("");

export async function restoreChats() {
  const found = await store.all().catch(() => []);
  chats.value = [...chats.value, ...found];
}

async function lookForModels() {
  try {
    const rows = (await call("GET", "/api/models")).models;
    const able = rows.filter((/** @type {any} */ row) => row.task !== "embeddings" && !row.error);
    models.value = able;
    if (!able.some((/** @type {any} */ row) => row.model_id === current.value.model)) {
      const loaded = able.find((/** @type {any} */ row) => row.status === "loaded");
      current.value.model = (loaded ?? able[0])?.model_id ?? "";
    }
    problem.value = null;
    changes.value += 1;
  } catch (error) {
    failed(error);
  }
}

export function beginChat() {
  if (tree.path(current.value).length > 0) current.value = tree.newChat(current.value.model);
  document.getElementById("message")?.focus();
}

export function stopAnswer() {
  underWay.value?.stop.abort();
}

function changed() {
  const chat = current.value;
  batch(() => {
    changes.value += 1;
    if (Object.keys(chat.messages).length > 0 && !chats.value.includes(chat)) chats.value = [chat, ...chats.value];
  });
  if (Object.keys(chat.messages).length > 0) void store.put(chat).catch(failed);
}

/** @param {string} text @param {string | null} parent */
function ask(text, parent) {
  if (underWay.value !== null || text.trim() === "") return;
  tree.add(current.value, "user", text, parent);
  changed();
  void answer();
}

/** An answer to the last message that is shown; with `message`, more of that answer. @param {Message} [message] */
async function answer(message) {
  const chat = current.value;
  const before = tree.path(chat);
  const continued = message?.content ?? "";
  const into = message ?? tree.add(chat, "assistant", "", chat.leaf);
  const stop = new AbortController();
  const live = { message: into, stop, began: 0, tokens: 0 };
  into.model = chat.model;
  into.finish = null;
  delete into.error;
  underWay.value = live;
  changed();
  let kept = performance.now();
  let frame = 0;
  const show = () => {
    frame = 0;
    frames.value += 1;
  };
  try {
    const body = tree.request(chat, before);
    for await (const event of events("/v1/chat/completions", body, stop.signal)) {
      take(into, event);
      if (live.began === 0 && (into.reasoning || into.content !== continued)) live.began = performance.now();
      if (live.began !== 0) live.tokens += 1; // one an event, for who keeps up
      // A hidden page has no frames, and needs none.
      if (frame === 0) frame = requestAnimationFrame(show);
      if (performance.now() - kept > KEEP_MS) {
        kept = performance.now();
        void store.put(chat).catch(failed);
      }
    }
  } catch (error) {
    if (stop.signal.aborted) into.finish = "stopped";
    else {
      into.error = inWords(error);
      if (error instanceof ApiError && error.code === "unreachable") failed(error);
    }
  }
  into.seconds = secondsOf(live);
  into.finish ??= "stopped";
  batch(() => {
    underWay.value = null;
    announced.value = say("answered");
  });
  changed();
  if (!into.error) void lookForModels(); // it may have been loaded for this
  if (into.context) await tellContext(chat, into);
}

/** Since its first token. @param {UnderWay} live */
function secondsOf(live) {
  return live.began === 0 ? 0 : (performance.now() - live.began) / 1000;
}

/** How fast it comes, once that can be told. @param {UnderWay} live */
function speedOf(live) {
  const seconds = secondsOf(live);
  return seconds < SPEED_SECONDS ? "" : ` ${(live.tokens / seconds).toFixed(1)} ${say("tokens")}/s`;
}

/** Of how many tokens those of an answer and all before it are. @param {Chat} chat @param {Message} message */
async function tellContext(chat, message) {
  const name = (message.model ?? chat.model).split("/").map(encodeURIComponent).join("/");
  const model = await call("GET", `/v1/models/${name}`).catch(() => null);
  if (!model?.context_length) return;
  message.contextLength = model.context_length;
  if (chat === current.value) changed();
  else void store.put(chat).catch(failed);
}

/** @param {Message} into @param {any} event */
function take(into, event) {
  const choice = event.choices?.[0];
  const delta = choice?.delta ?? {};
  if (delta.reasoning_content) into.reasoning = (into.reasoning ?? "") + delta.reasoning_content;
  if (delta.content) into.content += delta.content;
  for (const part of delta.tool_calls ?? []) {
    into.calls ??= [];
    const known = into.calls[part.index] ?? { name: "", arguments: "" };
    known.name += part.function?.name ?? "";
    known.arguments += part.function?.arguments ?? "";
    into.calls[part.index] = known;
  }
  if (choice?.finish_reason) into.finish = choice.finish_reason;
  into.model ||= event.model;
  if (event.usage) {
    into.tokens = event.usage.completion_tokens;
    into.context = event.usage.total_tokens;
  }
}

/** @param {Chat} chat */
function deleteChat(chat) {
  if (chat === current.value) {
    stopAnswer();
    current.value = tree.newChat(chat.model);
  }
  chats.value = chats.value.filter((each) => each !== chat);
  deleted.value = chat;
  void store.remove(chat.id).catch(failed);
  setTimeout(() => {
    if (deleted.value === chat) deleted.value = null;
  }, UNDO_MS);
}

function undelete() {
  const chat = deleted.value;
  if (chat === null) return;
  batch(() => {
    deleted.value = null;
    chats.value = [chat, ...chats.value];
    current.value = chat;
  });
  void store.put(chat).catch(failed);
}

/** @param {string} name @param {string} type @param {string} content */
function download(name, type, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** @param {unknown} content @param {string} name */
function downloadJson(content, name) {
  download(name, "application/json", `${JSON.stringify(content, null, 2)}\n`);
}

/** @param {File} file */
async function importChats(file) {
  const content = await file.text().then(JSON.parse).catch(() => null);
  const found = tree.imported(content);
  if (found.length === 0) {
    problem.value = say("importFailed");
    return;
  }
  chats.value = [...found, ...chats.value];
  current.value = /** @type {Chat} */ (found[0]);
  for (const chat of found) void store.put(chat).catch(failed);
}

// ---- what is shown ------------------------------------------------------------------------------------------

export function ChatView() {
  useEffect(() => void lookForModels(), []);
  return html`<aside aria-label=${say("chats")}><${ChatList} /></aside>
    <section class="talk" aria-label=${say("chat")}>
      <h2 class="unseen">${say("chat")}</h2>
      <${Problem} />
      <${Messages} key=${current.value.id} chat=${current.value} />
      <${Composer} />
      <div class="unseen" role="status">${announced.value}</div>
    </section>`;
}

function ChatList() {
  const file = useRef(/** @type {HTMLInputElement | null} */ (null));
  void changes.value;
  return html`<button type="button" onClick=${beginChat}>${say("newChat")}</button>
    ${deleted.value !== null &&
    html`<p role="status">${say("chatDeleted")} <button type="button" onClick=${undelete}>${say("undo")}</button></p>`}
    <h2 class="unseen">${say("chats")}</h2>
    ${chats.value.length === 0 && html`<p class="quiet">${say("noChats")}</p>`}
    <ul class="chats">
      ${chats.value.map(
        (chat) => html`<li key=${chat.id}>
          <button
            type="button"
            class="plain title"
            dir="auto"
            aria-current=${chat === current.value ? "true" : undefined}
            onClick=${() => (current.value = chat)}
          >
            ${chat.title || say("newChat")}
          </button>
          <button type="button" class="plain" aria-label=${`${say("deleteChat")}: ${chat.title}`} onClick=${() => deleteChat(chat)}>
            ✕
          </button>
        </li>`,
      )}
    </ul>
    <details class="files">
      <summary>${say("export")}, ${say("import")}</summary>
      <button type="button" onClick=${() => downloadJson(tree.exported(current.value), "chat.json")}>${say("export")}</button>
      <button
        type="button"
        onClick=${() =>
          download(
            "chat.md",
            "text/markdown",
            tree.asMarkdown(current.value, (role) => say(role === "user" ? "you" : "answer")),
          )}
      >
        ${say("exportMarkdown")}
      </button>
      <button type="button" onClick=${() => downloadJson(tree.exportedAll(chats.value), "chats.json")}>
        ${say("exportAll")}
      </button>
      <button type="button" onClick=${() => file.current?.click()}>${say("import")}</button>
      <input
        ref=${file}
        type="file"
        accept="application/json,.json"
        hidden
        aria-label=${say("import")}
        onChange=${(/** @type {any} */ event) => {
          const [chosen] = event.target.files;
          if (chosen) void importChats(chosen);
          event.target.value = "";
        }}
      />
    </details>`;
}

/** @param {{chat: Chat}} properties */
function Messages({ chat }) {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const isAtEnd = useRef(true);
  const [isAway, setAway] = useState(false);
  void changes.value;
  const end = () => box.current?.scrollTo({ top: box.current.scrollHeight });
  useLayoutEffect(() => {
    // Text is drawn after this, and in pieces: whoever is at the end stays there, and nobody else is moved.
    const watch = new ResizeObserver(() => isAtEnd.current && end());
    const list = box.current?.firstElementChild;
    if (list) watch.observe(list);
    return () => watch.disconnect();
  }, []);
  const onScroll = () => {
    const element = /** @type {HTMLElement} */ (box.current);
    isAtEnd.current = element.scrollHeight - element.scrollTop - element.clientHeight < NEAR_END;
    setAway(!isAtEnd.current);
  };
  return html`<div class="messages" ref=${box} onScroll=${onScroll} tabindex="0" role="region" aria-label=${say("message")}>
      <ol>
        ${tree.path(chat).map((message) => html`<${Entry} key=${message.id} chat=${chat} message=${message} />`)}
      </ol>
    </div>
    ${isAway &&
    html`<button type="button" class="to-end" onClick=${end}>↓ ${say("toBottom")}</button>`}`;
}

/** @param {{chat: Chat, message: Message}} properties */
function Entry({ chat, message }) {
  const [isEdited, setEdited] = useState(false);
  const live = underWay.value?.message === message ? underWay.value : null;
  const isLive = live !== null;
  if (isLive) void frames.value;
  const isUser = message.role === "user";
  return html`<li class="entry ${message.role}">
    <h3>${isUser ? say("you") : (message.model ?? say("answer"))}</h3>
    ${message.reasoning &&
    html`<details class="thought">
      <summary>${say("thinks")}</summary>
      <div dir="auto" class="pre">${message.reasoning}</div>
    </details>`}
    ${isEdited
      ? html`<${Editor} message=${message} close=${() => setEdited(false)} />`
      : isUser
        ? html`<div class="pre" dir="auto">${message.content}</div>`
        : html`<${Prose} text=${message.content} done=${!isLive} />`}
    ${(message.calls ?? []).map(
      (call_, index) => html`<details key=${index} class="thought">
        <summary>${say("call")}: ${call_.name}</summary>
        <div class="pre">${call_.arguments}</div>
      </details>`,
    )}
    ${message.error && html`<p class="problem">${message.error}</p>`}
    ${!isLive && !isEdited && html`<${Tools} chat=${chat} message=${message} edit=${() => setEdited(true)} />`}
    ${live && html`<p class="quiet" aria-hidden="true">…${speedOf(live)}</p>`}
  </li>`;
}

/** @param {{text: string, done: boolean}} properties */
function Prose({ text, done }) {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const flow = useRef(/** @type {Flow | null} */ (null));
  useLayoutEffect(() => {
    flow.current ??= new Flow(/** @type {HTMLElement} */ (box.current));
    flow.current.show(text, done);
  }, [text, done]);
  useEffect(() => () => flow.current?.end(), []);
  return html`<div class="prose" dir="auto" ref=${box}></div>`;
}

/** @param {{message: Message, close: () => void}} properties */
function Editor({ message, close }) {
  const [text, setText] = useState(message.content);
  const area = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  useEffect(() => area.current?.focus(), []);
  const send = () => {
    close();
    ask(text, message.parent);
  };
  return html`<form onSubmit=${(/** @type {Event} */ event) => event.preventDefault()}>
    <textarea
      ref=${area}
      rows="4"
      dir="auto"
      aria-label=${say("edit")}
      value=${text}
      onInput=${(/** @type {any} */ event) => setText(event.target.value)}
      onKeyDown=${(/** @type {KeyboardEvent} */ event) => {
        if (event.key === "Escape") close();
        if (sends(event)) send();
      }}
    ></textarea>
    <button type="button" onClick=${send}>${say("save")}</button>
    <button type="button" onClick=${close}>${say("cancel")}</button>
  </form>`;
}

/** @param {{chat: Chat, message: Message, edit: () => void}} properties */
function Tools({ chat, message, edit }) {
  const [isCopied, setCopied] = useState(false);
  const all = tree.versions(chat, message);
  const index = all.indexOf(message);
  const isBusy = underWay.value !== null;
  void changes.value; // of how much the context is, comes after the answer
  const isLast = chat.leaf === message.id;
  /** @param {number} by */
  const step = (by) => {
    chat.leaf = tree.newestBelow(chat, /** @type {Message} */ (all[index + by]).id);
    changed();
  };
  const again = () => {
    chat.leaf = message.parent;
    void answer();
  };
  return html`<div class="tools">
    ${all.length > 1 &&
    html`<span>
      <button type="button" class="plain" aria-label=${say("previous")} disabled=${index === 0 || isBusy} onClick=${() => step(-1)}>‹</button>
      ${index + 1}/${all.length}
      <button type="button" class="plain" aria-label=${say("next")} disabled=${index === all.length - 1 || isBusy} onClick=${() => step(1)}>›</button>
    </span>`}
    <button
      type="button"
      class="plain"
      onClick=${async () => {
        await copyText(message.content);
        setCopied(true);
      }}
    >
      ${isCopied ? say("copied") : say("copy")}
    </button>
    ${message.role === "user"
      ? html`<button type="button" class="plain" disabled=${isBusy} onClick=${edit}>${say("edit")}</button>`
      : html`<button type="button" class="plain" disabled=${isBusy} onClick=${again}>${say("again")}</button>
          ${isLast &&
          message.finish !== "stop" &&
          !message.error &&
          html`<button type="button" class="plain" disabled=${isBusy} onClick=${() => answer(message)}>${say("goOn")}</button>`}
          <span class="quiet">${figures(message)}</span>`}
  </div>`;
}

/** @param {Message} message */
function figures(message) {
  const parts = [];
  if (message.finish === "length") parts.push(say("cutLength"));
  if (message.finish === "stopped") parts.push(say("stopped"));
  if (message.tokens) {
    parts.push(`${message.tokens} ${say("tokens")}`);
    if (message.seconds) parts.push(`${(message.tokens / message.seconds).toFixed(1)} ${say("tokens")}/s`);
  }
  if (message.context) {
    const all = message.contextLength ? ` ${say("of")} ${count(message.contextLength)}` : "";
    parts.push(`${say("contextUsed")} ${count(message.context)}${all}`);
  }
  return parts.join(" · ");
}

/** Does this key send? Not while an input method composes. @param {KeyboardEvent} event */
function sends(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === IME_CODE) return false;
  event.preventDefault();
  return true;
}

function Composer() {
  const area = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  const file = useRef(/** @type {HTMLInputElement | null} */ (null));
  void changes.value;
  const chat = current.value;
  const isBusy = underWay.value !== null;
  // Before the models are known, the node chooses.
  const hasModel = chat.model !== "" || models.value === null;
  const send = () => {
    if (isBusy || draft.value.trim() === "" || !hasModel) return;
    const text = draft.value;
    draft.value = "";
    ask(text, chat.leaf);
  };
  return html`<form class="composer" onSubmit=${(/** @type {Event} */ event) => event.preventDefault()}>
    <label class="unseen" for="message">${say("message")}</label>
    <textarea
      id="message"
      ref=${area}
      rows="3"
      dir="auto"
      placeholder=${say("ask")}
      value=${draft.value}
      onInput=${(/** @type {any} */ event) => (draft.value = event.target.value)}
      onKeyDown=${(/** @type {KeyboardEvent} */ event) => sends(event) && send()}
    ></textarea>
    <div class="row">
      <${ModelPicker} chat=${chat} />
      <button type="button" onClick=${() => file.current?.click()}>${say("attach")}</button>
      <input
        ref=${file}
        type="file"
        hidden
        aria-label=${say("attach")}
        onChange=${async (/** @type {any} */ event) => {
          const [chosen] = event.target.files;
          event.target.value = "";
          if (chosen) await attach(chosen);
          area.current?.focus();
        }}
      />
      ${isBusy
        ? html`<button type="button" class="main" onClick=${stopAnswer}>${say("stop")}</button>`
        : html`<button type="button" class="main" disabled=${!hasModel} onClick=${send}>${say("send")}</button>`}
    </div>
    <${Parameters} key=${chat.id} chat=${chat} />
  </form>`;
}

/** @param {File} file */
async function attach(file) {
  const text = file.size > LARGEST_FILE ? "\0" : await file.text();
  if (text.includes("\0")) {
    problem.value = `${file.name} ${say("tooLarge")}`;
    return;
  }
  const fence = "`".repeat(Math.max(3, ...[...text.matchAll(/`+/g)].map((run) => run[0].length + 1)));
  draft.value = `${draft.value}${draft.value ? "\n\n" : ""}${file.name}:\n${fence}\n${text.trimEnd()}\n${fence}\n`;
}

/** @param {{chat: Chat}} properties */
function ModelPicker({ chat }) {
  const id = useId();
  const known = models.value;
  if (known === null) return null;
  const isKnown = chat.model === "" || known.some((row) => row.model_id === chat.model);
  const rows = isKnown ? known : [{ model_id: chat.model, status: "available" }, ...known];
  if (rows.length === 0) return html`<p class="quiet">${say("noModel")}</p>`;
  return html`<label for=${id}>${say("model")}</label>
    <select
      id=${id}
      value=${chat.model}
      onChange=${(/** @type {any} */ event) => {
        chat.model = event.target.value;
        changed();
      }}
      onFocus=${lookForModels}
    >
      ${rows.map(
        ({ model_id, status }) => html`<option key=${model_id} value=${model_id}
          >${model_id}${status === "available" ? "" : ` · ${say(/** @type {any} */ (status))}`}</option
        >`,
      )}
    </select>`;
}

/** @param {{chat: Chat}} properties */
function Parameters({ chat }) {
  const id = useId();
  /** @param {string} key @param {string} text */
  const set = (key, text) => {
    if (text.trim() === "" || Number.isNaN(Number(text))) delete chat.parameters[key];
    else chat.parameters[key] = Number(text);
    changed();
  };
  return html`<details>
    <summary>${say("parameters")}</summary>
    <label for="${id}-system">${say("system")}</label>
    <textarea
      id="${id}-system"
      rows="2"
      dir="auto"
      value=${chat.system}
      onChange=${(/** @type {any} */ event) => {
        chat.system = event.target.value;
        changed();
      }}
    ></textarea>
    <div class="row">
      <label for="${id}-temperature">${say("temperature")}</label>
      <input
        id="${id}-temperature"
        type="number"
        min="0"
        max="2"
        step="0.1"
        placeholder=${say("usual")}
        value=${chat.parameters.temperature ?? ""}
        onChange=${(/** @type {any} */ event) => set("temperature", event.target.value)}
      />
      <label for="${id}-tokens">${say("maxTokens")}</label>
      <input
        id="${id}-tokens"
        type="number"
        min="1"
        step="1"
        placeholder=${say("usual")}
        value=${chat.parameters.max_tokens ?? ""}
        onChange=${(/** @type {any} */ event) => set("max_tokens", event.target.value)}
      />
    </div>
  </details>`;
}
