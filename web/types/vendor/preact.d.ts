// As web/entries/preact.js: the types of what is bundled.
import type { Signal as Of } from "@preact/signals";

export { h, render } from "preact";
export { useEffect, useId, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
export { batch, computed, effect, signal, useComputed, useSignal } from "@preact/signals";
export type Signal<T> = Of<T>;
export function html(strings: TemplateStringsArray, ...values: any[]): any;
