// @ts-check
/**
 * A chat as a tree: an edit or another answer is a branch beside what was there, and nothing is lost. Pure.
 *
 * @typedef {import("./store.js").Chat} Chat
 * @typedef {import("./store.js").Message} Message
 */

export const FORMAT = "llm-node-chat/1";
const MANY = "llm-node-chats/1";
const LONGEST_TITLE = 60;

/** Not `crypto.randomUUID`, which plain http from another machine lacks. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** @param {string} model @returns {Chat} */
export function newChat(model) {
  return { id: newId(), title: "", at: Date.now(), model, system: "", parameters: {}, leaf: null, messages: {} };
}

/** The messages that are shown, from the first to the last. @param {Chat} chat @returns {Message[]} */
export function path(chat) {
  const found = [];
  for (let id = chat.leaf; id !== null; ) {
    const message = chat.messages[id];
    if (message === undefined) break;
    found.push(message);
    id = message.parent;
  }
  return found.reverse();
}

/** Its versions, itself among them, in the order in which they were made. @param {Chat} chat @param {Message} message */
export function versions(chat, message) {
  return Object.values(chat.messages).filter((each) => each.parent === message.parent && each.role === message.role);
}

/** @param {Chat} chat @param {string} id the newest end below that message */
export function newestBelow(chat, id) {
  for (;;) {
    const below = Object.values(chat.messages).filter((each) => each.parent === id);
    const last = below.at(-1);
    if (last === undefined) return id;
    id = last.id;
  }
}

/**
 * @param {Chat} chat @param {Message["role"]} role @param {string} content @param {string | null} parent
 * @returns {Message} which is shown from now on
 */
export function add(chat, role, content, parent) {
  const message = { id: newId(), parent, role, content };
  chat.messages[message.id] = message;
  chat.leaf = message.id;
  chat.at = Date.now();
  if (chat.title === "" && role === "user") chat.title = titleOf(content);
  return message;
}

/** @param {string} text */
function titleOf(text) {
  const line = text.split("\n").find((each) => each.trim() !== "")?.trim() ?? "";
  return line.length > LONGEST_TITLE ? `${line.slice(0, LONGEST_TITLE - 1)}…` : line;
}

/** The request for an answer. @param {Chat} chat @param {Message[]} messages */
export function request(chat, messages) {
  const said = messages.map((message) => ({
    role: message.role,
    content: message.content,
    ...(message.reasoning ? { reasoning_content: message.reasoning } : {}),
  }));
  const system = chat.system.trim() === "" ? [] : [{ role: "system", content: chat.system }];
  return {
    ...(chat.model === "" ? {} : { model: chat.model }),
    messages: [...system, ...said],
    ...chat.parameters,
    stream: true,
    stream_options: { include_usage: true },
  };
}

/** One chat as a file: what `/load` of `llm-node run` reads, and all branches. @param {Chat} chat */
export function exported(chat) {
  return {
    format: FORMAT,
    model: chat.model,
    system: chat.system || null,
    messages: path(chat).map(({ role, content, reasoning }) => ({
      role,
      content,
      ...(reasoning ? { reasoning_content: reasoning } : {}),
    })),
    parameters: chat.parameters,
    title: chat.title,
    branches: { leaf: chat.leaf, messages: Object.values(chat.messages) },
  };
}

/** @param {Chat[]} chats */
export function exportedAll(chats) {
  return { format: MANY, chats: chats.map(exported) };
}

/** The chats of a file; none where it is no such file. @param {any} content @returns {Chat[]} */
export function imported(content) {
  const files = content?.format === MANY && Array.isArray(content.chats) ? content.chats : [content];
  return files.flatMap((/** @type {any} */ file) => importedOne(file) ?? []);
}

/** @param {any} file @returns {Chat | null} */
function importedOne(file) {
  if (file?.format !== FORMAT || !Array.isArray(file.messages)) return null;
  const chat = newChat(typeof file.model === "string" ? file.model : "");
  chat.system = typeof file.system === "string" ? file.system : "";
  for (const [key, value] of Object.entries(file.parameters ?? {})) {
    if (typeof value === "number") chat.parameters[key] = value;
  }
  const branches = file.branches?.messages;
  if (Array.isArray(branches) && branches.every(isMessage)) {
    for (const message of branches) chat.messages[message.id] = message;
    chat.leaf = chat.messages[file.branches.leaf] ? file.branches.leaf : null;
    if (Object.values(chat.messages).some((message) => !endsAtTheTop(chat, message))) return null;
  } else {
    for (const message of file.messages) {
      if (message?.role !== "user" && message?.role !== "assistant") continue;
      const made = add(chat, message.role, String(message.content ?? ""), chat.leaf);
      if (typeof message.reasoning_content === "string") made.reasoning = message.reasoning_content;
    }
  }
  chat.title = typeof file.title === "string" ? file.title : chat.title;
  return chat;
}

/** @param {any} it */
function isMessage(it) {
  return (
    typeof it?.id === "string" &&
    (it.parent === null || typeof it.parent === "string") &&
    (it.role === "user" || it.role === "assistant") &&
    typeof it.content === "string"
  );
}

/** A file may have been made by anybody, and a circle would never end. @param {Chat} chat @param {Message} message */
function endsAtTheTop(chat, message) {
  const seen = new Set();
  /** @type {string | null} */
  let id = message.id;
  while (id !== null) {
    /** @type {Message | undefined} */
    const above = chat.messages[id];
    if (seen.has(id) || above === undefined) return false;
    seen.add(id);
    id = above.parent;
  }
  return true;
}

/** @param {Chat} chat @param {(role: Message["role"]) => string} heading */
export function asMarkdown(chat, heading) {
  return path(chat)
    .map((message) => `## ${heading(message.role)}\n\n${message.content}\n`)
    .join("\n");
}
