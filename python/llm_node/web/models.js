// @ts-check
/** The models that are here, what holds the memory, and how more of them get here. */
import { html, signal, useEffect, useId, useState } from "./vendor/preact.js";
import { Advice } from "./advice.js";
import { call } from "./api.js";
import { count, duration, size } from "./figures.js";
import { Problem, failed, problem } from "./problems.js";
import { say } from "./preferences.js";

const LOOK_MS = 1000;

/** @type {import("./vendor/preact.js").Signal<any[] | null>} */
const rows = signal(null);
/** @type {import("./vendor/preact.js").Signal<any[]>} */
const pulls = signal([]);
/** @type {import("./vendor/preact.js").Signal<any[]>} */
const devices = signal([]);
/** @type {import("./vendor/preact.js").Signal<any[]>} */
const advice = signal([]);
/** @type {import("./vendor/preact.js").Signal<any | null>} */
const planned = signal(null);
/** @type {import("./vendor/preact.js").Signal<any[] | null>} */
const found = signal(null);
const typed = signal("");

/** Each of them for itself: a slow one holds up no other. */
async function look() {
  const all = await Promise.allSettled([
    call("GET", "/api/models").then((answer) => (rows.value = answer.models)),
    call("GET", "/api/models/pulls").then((answer) => (pulls.value = answer.pulls)),
    call("GET", "/api/system").then((answer) => {
      devices.value = answer.devices;
      advice.value = answer.advice;
    }),
  ]);
  const wrong = all.find((each) => each.status === "rejected");
  if (wrong?.status === "rejected") failed(wrong.reason);
}

/** @param {string} method @param {string} path @param {object} [body] */
async function act(method, path, body) {
  problem.value = null;
  try {
    const answer = await call(method, path, body);
    void look();
    return answer;
  } catch (error) {
    failed(error);
    void look();
    return null;
  }
}

/** @param {string} model */
function pull(model) {
  if (model.trim() !== "") void act("POST", "/api/models/pull", { model: model.trim(), stream: false });
}

export function ModelsView() {
  useEffect(() => {
    void look();
    const timer = setInterval(() => document.visibilityState === "visible" && void look(), LOOK_MS);
    return () => clearInterval(timer);
  }, []);
  return html`<h2>${say("models")}</h2>
    <${Problem} />
    <${Advice} items=${advice.value} />
    <ul class="cards">
      ${rows.value?.map((row) => html`<${Row} key=${row.model_id} row=${row} />`)}
    </ul>
    <${Fetch} />
    <${PullList} />
    <${Memory} />`;
}

/** @param {{row: any}} properties */
function Row({ row }) {
  const [isSure, setSure] = useState(false);
  const [verdict, setVerdict] = useState("");
  const name = row.model_id;
  /** What a load would come to now, for who is about to ask for one. */
  const foresee = () =>
    void call("POST", "/api/models/plan", { model_id: name }).then((planned) => setVerdict(verdictOf(planned)), failed);
  const isThere = ["loaded", "loading", "waiting"].includes(row.status);
  const pin = () => act("POST", "/api/models/load", { model_id: name, pin: !row.pinned });
  const state = row.progress ? `${say("loading")} ${Math.round(row.progress * 100)} %` : say(row.status);
  return html`<li>
    <h3>${name}</h3>
    <dl>
      <dt>${say("state")}</dt>
      <dd class=${row.status}>${state}${row.pinned ? `, ${say("pinned")}` : ""}</dd>
      <dt>${say("size")}</dt>
      <dd>${size(row.size_bytes)}${row.quantization ? ` · ${row.quantization}` : ""}</dd>
      <dt>${say("context")}</dt>
      <dd>${count(row.facts?.context_length ?? row.context_length)}</dd>
      <dt>${say("from")}</dt>
      <dd>${row.origin ?? "?"}</dd>
    </dl>
    ${row.workers && html`<${Workers} workers=${row.workers} />`}
    ${row.error && html`<p class="problem">${row.error.message}</p>`}
    <p class="quiet" role="status">${isThere ? "" : verdict}</p>
    <div class="row">
      ${isThere
        ? html`<button type="button" aria-label=${`${say("unload")} ${name}`} onClick=${() => act("POST", "/api/models/unload", { model_id: name })}>
            ${say("unload")}
          </button>`
        : html`<button
            type="button"
            aria-label=${`${say("load")} ${name}`}
            onFocus=${foresee}
            onPointerEnter=${foresee}
            onClick=${() => act("POST", "/api/models/load", { model_id: name })}
          >
            ${say("load")}
          </button>`}
      ${row.status === "loaded" &&
      html`<button type="button" aria-label=${`${say(row.pinned ? "unpin" : "pin")}: ${name}`} onClick=${pin}>
        ${say(row.pinned ? "unpin" : "pin")}
      </button>`}
      ${row.origin === "own" &&
      !isSure &&
      html`<button type="button" aria-label=${`${say("remove")} ${name}`} onClick=${() => setSure(true)}>${say("remove")}</button>`}
      ${isSure &&
      html`<span role="status">${say("sure")}</span>
        <button type="button" onClick=${() => act("POST", "/api/models/remove", { model: name })}>${say("remove")}</button>
        <button type="button" onClick=${() => setSure(false)}>${say("cancel")}</button>`}
    </div>
  </li>`;
}

/** Of a model with several. @param {{workers: any[]}} properties */
function Workers({ workers }) {
  const state = (/** @type {any} */ it) => {
    if (it.draining) return say("draining");
    return it.status === "loading" ? `${say("loading")} ${Math.round(it.progress * 100)} %` : say(it.status);
  };
  return html`<h4>${say("workers")}</h4>
    <ol>
      ${workers.map(
        (it, index) => html`<li key=${it.pid ?? `none${index}`}>
          ${[state(it), ...it.devices, `${say("requests")}: ${count(it.requests)}`].join(" · ")}
        </li>`,
      )}
    </ol>`;
}

/** @param {any} planned */
function verdictOf(planned) {
  const names = (/** @type {any[]} */ rows) => rows.map((row) => row.model_id).join(", ");
  const takes = planned.memory.map((/** @type {any} */ use) => `${size(use.total_bytes)} (${use.device})`).join(", ");
  switch (planned.verdict) {
    case "fits":
      return `${say("hasRoom")}: ${takes}`;
    case "after_shrinking":
      return `${say("roomAfterShrinking")} ${names(planned.shrink)}: ${takes}`;
    case "after_unloading":
      return `${say("roomAfter")} ${names(planned.unload)}: ${takes}`;
    case "after_waiting":
      return `${say("waitsFor")} ${names(planned.holders)}`;
    case "refused":
      return planned.error.message;
    default:
      return "";
  }
}

function Fetch() {
  const id = useId();
  const plan = async () => {
    planned.value = await act("POST", "/api/models/pull", { model: typed.value.trim(), dry_run: true });
  };
  const search = async () => {
    const answer = await act("GET", `/api/models/search?q=${encodeURIComponent(typed.value.trim())}`);
    found.value = answer?.models ?? null;
  };
  return html`<h3>${say("pull")}</h3>
    <form
      onSubmit=${(/** @type {Event} */ event) => {
        event.preventDefault();
        pull(typed.value);
      }}
    >
      <label for=${id}>${say("pullName")}</label>
      <input
        id=${id}
        type="text"
        autocomplete="off"
        spellcheck=${false}
        placeholder=${say("pullHint")}
        value=${typed.value}
        onInput=${(/** @type {any} */ event) => {
          typed.value = event.target.value;
          planned.value = null;
        }}
      />
      <div class="row">
        <button type="submit" class="main" disabled=${typed.value.trim() === ""}>${say("pull")}</button>
        <button type="button" disabled=${typed.value.trim() === ""} onClick=${plan}>${say("which")}</button>
        <button type="button" onClick=${search}>${say("search")}</button>
      </div>
    </form>
    ${planned.value !== null && html`<${Planned} planned=${planned.value} />`}
    ${found.value !== null &&
    html`<ul class="cards">
      ${found.value.map(
        (each) => html`<li key=${each.id}>
          <h4>${each.id}</h4>
          <p class="quiet">
            ${`${count(each.downloads)} ${say("downloads")}`}${each.fits === null ? "" : ` · ~ ${say(each.fits ? "aboutYes" : "aboutNo")}`}
          </p>
          <button
            type="button"
            aria-label=${`${say("which")} ${each.id}`}
            onClick=${() => {
              typed.value = each.id;
              void plan();
            }}
          >
            ${say("which")}
          </button>
        </li>`,
      )}
    </ul>`}`;
}

/** @param {{planned: any}} properties */
function Planned({ planned: plan }) {
  return html`<div role="status">${plan.why.map((/** @type {string} */ line) => html`<p key=${line}>${line}</p>`)}</div>
    ${plan.versions.length > 0 &&
    html`<div class="wide" tabindex="0" role="region" aria-label=${say("version")}>
      <table>
        <thead>
          <tr>
            <th scope="col">${say("version")}</th>
            <th scope="col">${say("size")}</th>
            <th scope="col">${say("bits")}</th>
            <th scope="col">${say("needs")}</th>
            <th scope="col">${say("fits")}</th>
            <th scope="col">${say("pull")}</th>
          </tr>
        </thead>
        <tbody>
          ${plan.versions.map(
            (/** @type {any} */ it) => html`<tr key=${it.version} class=${it.version === plan.chosen ? "chosen" : ""}>
              <th scope="row">${it.version}</th>
              <td>${size(it.size_bytes)}</td>
              <td>${it.bits.toFixed(1)}</td>
              <td>${size(it.needs_bytes)}</td>
              <td>${it.fits ? say("yes") : say("no")}</td>
              <td>
                <button
                  type="button"
                  aria-label=${`${say("pull")} ${it.version}`}
                  onClick=${() => pull(`${plan.model.split(":")[0]}:${it.version}`)}
                >
                  ${say("pull")}
                </button>
              </td>
            </tr>`,
          )}
        </tbody>
      </table>
    </div>`}`;
}

function PullList() {
  if (pulls.value.length === 0) return null;
  return html`<h3>${say("pulls")}</h3>
    <ul class="cards">
      ${pulls.value.map((it) => html`<${Pull} key=${it.model} it=${it} />`)}
    </ul>`;
}

/** @param {{it: any}} properties */
function Pull({ it }) {
  const isOver = it.event === "ready" || it.event === "error" || it.event === "stopped";
  const state = it.event === "error" ? (it.error?.message ?? say("failed")) : say(it.event);
  return html`<li>
    <h4>${it.model}${it.version && !it.model.includes(":") ? `:${it.version}` : ""}</h4>
    ${it.why?.map((/** @type {string} */ line) => html`<p key=${line} class="quiet">${line}</p>`)}
    ${typeof it.bytes === "number" &&
    html`<progress aria-label=${it.model} max=${it.total} value=${it.bytes}></progress>
      <p>
        ${size(it.bytes)} / ${size(it.total)}
        ${it.bytes_per_second ? ` · ${size(it.bytes_per_second)}/s` : ""}
        ${it.eta_seconds ? ` · ${say("left")} ${duration(it.eta_seconds)}` : ""}
      </p>`}
    <p class=${it.event === "error" ? "problem" : ""}>${state}</p>
    <div class="row">
      ${!isOver &&
      html`<button type="button" onClick=${() => act("DELETE", `/api/models/pulls/${it.pull_id}`)}>${say("stopPull")}</button>`}
      ${isOver &&
      it.event !== "ready" &&
      html`<button type="button" onClick=${() => pull(it.model)}>${say("goOnPull")}</button>
        <button type="button" onClick=${() => act("DELETE", `/api/models/pulls/${it.pull_id}?discard=true`)}>${say("discard")}</button>`}
    </div>
  </li>`;
}

function Memory() {
  return html`<h3>${say("memory")}</h3>
    ${devices.value.map((device) => html`<${Device} key=${device.id} device=${device} />`)}`;
}

/** Each model once, whatever number of its workers a device holds. @param {any} device */
function holders(device) {
  /** @type {Map<string, number>} */
  const bytes = new Map();
  for (const it of device.holders) bytes.set(it.model_id, (bytes.get(it.model_id) ?? 0) + it.bytes);
  return [...bytes].map(([model_id, all]) => ({ model_id, bytes: all }));
}

/**
 * What a model takes on a device, by what it is for, as far as the engine says.
 * @param {any} device @param {{model_id: string, bytes: number}} holder
 */
function shares(device, holder) {
  const row = rows.value?.find((each) => each.model_id === holder.model_id);
  const accounts = new Map(devices.value.map((each) => [each.id, each.account]));
  const isThere = (/** @type {any} */ use) => accounts.get(use.id) === device.id;
  const uses = (row?.memory ?? []).filter(isThere);
  const sum = (/** @type {string} */ part) =>
    uses.reduce((/** @type {number} */ all, /** @type {any} */ use) => all + use[part], 0);
  const [weights, cache] = [sum("weights_bytes"), sum("cache_bytes")];
  const rest = Math.max(0, holder.bytes - weights - cache);
  return [
    { name: `${holder.model_id} · ${say("weights")}`, bytes: weights, kind: "weights" },
    { name: `${holder.model_id} · ${say("cache")}`, bytes: cache, kind: "cache" },
    { name: `${holder.model_id} · ${say("rest")}`, bytes: rest, kind: "rest" },
  ].filter((part) => part.bytes > 0);
}

/** One bar for eyes, and its figures as a table for everybody. @param {{device: any}} properties */
function Device({ device }) {
  if (device.account !== device.id) return html`<p>${device.name}: ${say("sharedMemory")}</p>`;
  const others = Math.max(0, device.total_bytes - device.free_bytes - device.reserved_bytes);
  /** @type {{name: string, bytes: number, kind: string}[]} */
  const parts = [
    ...holders(device).flatMap((it) => shares(device, it)),
    { name: say("others"), bytes: others, kind: "others" },
    { name: say("free"), bytes: device.free_bytes, kind: "free" },
  ];
  let at = 0;
  return html`<h4>${device.name} · ${size(device.total_bytes)}</h4>
    <svg class="memory" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">
      ${parts.map((part, index) => {
        const width = (part.bytes / device.total_bytes) * 100;
        const x = at;
        at += width;
        return html`<rect key=${index} class=${part.kind} x=${x} y="0" width=${width} height="4"></rect>`;
      })}
    </svg>
    <table>
      <thead>
        <tr>
          <th scope="col">${say("holder")}</th>
          <th scope="col">${say("size")}</th>
        </tr>
      </thead>
      <tbody>
        ${parts.map(
          (part) => html`<tr key=${part.name}>
            <th scope="row">${part.name}</th>
            <td>${size(part.bytes)}</td>
          </tr>`,
        )}
      </tbody>
    </table>`;
}
