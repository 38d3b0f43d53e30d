// @ts-check
/**
 * Chats, kept in this browser's IndexedDB. Where that cannot be had (a private window), they live as long as the
 * page.
 *
 * @typedef {{id: string, parent: string | null, role: "user" | "assistant", content: string, reasoning?: string,
 *   calls?: {name: string, arguments: string}[], finish?: string | null, tokens?: number, seconds?: number,
 *   context?: number, contextLength?: number, error?: string, model?: string}} Message
 * @typedef {{id: string, title: string, at: number, model: string, system: string,
 *   parameters: Record<string, number>, leaf: string | null, messages: Record<string, Message>}} Chat
 */

const DATABASE = "llm-node";
const CHATS = "chats";
/** @type {Promise<IDBDatabase | null> | undefined} */
let opened;

function open() {
  opened ??= new Promise((resolve) => {
    let request;
    try {
      request = indexedDB.open(DATABASE, 1);
    } catch {
      resolve(null);
      return;
    }
    request.onupgradeneeded = () => request.result.createObjectStore(CHATS, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => resolve(null);
  });
  return opened;
}

/**
 * @param {IDBTransactionMode} mode @param {(store: IDBObjectStore) => IDBRequest} act @returns {Promise<any>}
 */
async function run(mode, act) {
  const database = await open();
  if (database === null) return undefined;
  return new Promise((resolve, reject) => {
    const request = act(database.transaction(CHATS, mode).objectStore(CHATS));
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** @returns {Promise<Chat[]>} the latest first */
export async function all() {
  const found = /** @type {Chat[]} */ ((await run("readonly", (store) => store.getAll())) ?? []);
  return found.sort((a, b) => b.at - a.at);
}

/** @param {Chat} chat */
export function put(chat) {
  return run("readwrite", (store) => store.put(chat));
}

/** @param {string} id */
export function remove(id) {
  return run("readwrite", (store) => store.delete(id));
}
