// @ts-check
/** Work that can wait, in pieces that are shorter than a frame, so that the page never stands still. */

/** Milliseconds of work in one piece. */
export const BUDGET = 8;

/** @type {(() => void)[]} */
const waiting = [];
let isAwake = false;
const channel = new MessageChannel();
channel.port1.onmessage = () => {
  const end = performance.now() + BUDGET;
  do waiting.shift()?.();
  while (waiting.length > 0 && performance.now() < end);
  isAwake = waiting.length > 0;
  if (isAwake) channel.port2.postMessage(null);
};

/** When it is its turn. What is visible was drawn before. @param {() => void} job */
export function later(job) {
  waiting.push(job);
  if (isAwake) return;
  isAwake = true;
  channel.port2.postMessage(null);
}
