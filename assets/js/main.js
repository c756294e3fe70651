/* The page's entry: the functions that mount its components (lora_drop/ui/components.py), with the page's store. */

import { mountCompare as compare } from "./controls/compare.js";
import { gradioDoor, mountFacts as facts, mountRunButton } from "./controls/gradio.js";
import { mountPresets as presets } from "./controls/preset_table.js";
import { mountRange as range } from "./controls/range.js";
import { mountProgress as progress, mountStatus as status } from "./controls/status.js";
import { mountWhatIf as whatIf } from "./controls/what_if.js";
import { find, make } from "./dom.js";
import { linkOf } from "./export/link.js";
import * as pictures from "./export/picture.js";
import { mountLive as live } from "./live/live.js";
import { readingPace } from "./pace.js";
import * as schedule from "./schedule.js";
import { store } from "./store.js";

const NOT_LOADED = "This part of the page could not be loaded: the server cannot be reached, or was updated. Reload the page.";

/** A live view; without a store it makes one. */
const view = (element, props, watch, server, viewStore) =>
  live(element, props, watch, () => import("./method/build_up.js"), server, viewStore);

export const mountCompare = (element, props, watch) => compare(element, props, watch, store);
export const mountFacts = (element, props, watch) => facts(props, watch, store);
export const mountLive = (element, props, watch, server) => view(element, props, watch, server, store);
export const mountPresets = (element, props, watch, trigger, server) =>
  presets(element, props, watch, trigger, server, store);
export const mountRange = (element, props, watch, trigger) => range(element, props, watch, trigger, store);
export const mountProgress = progress;
export const mountStatus = (element, props, watch) => status(element, props, watch, store);

export function mountWhatIf(element, props, server) {
  whatIf(element, props, server, store);
  mountRunButton(store);
}

/**
 * A mount function of another tab, whose module is loaded when the tab is first opened. A failure is shown in its place.
 *
 * @param {() => Promise<any>} load
 * @param {string} mount name of the module's function
 * @returns {(element: HTMLElement, ...rest: any[]) => Promise<void>}
 */
const late = (load, mount) => async (element, ...rest) => {
  try {
    await (await load())[mount](element, ...rest);
  } catch (error) {
    element.replaceChildren(Object.assign(make("p", "", NOT_LOADED), { role: "alert" }));
    console.error(error);
  }
};

const pays = late(() => import("./pays.js"), "drawPays");
const method = late(() => import("./method/method.js"), "mountMethod");
export const mountDial = late(() => import("./safe_zone.js"), "mountDial");
export const mountFigure = late(() => import("./safe_zone.js"), "mountFigure");
export const mountMethod = (element, server) => method(element, server, store, pays);
export function mountPays(element, server) {
  const fold = find(element, "details");
  fold.addEventListener("toggle", () => pays(find(fold, ".ld-pays"), server, store), { once: true });
}
export const mountSafeMap = late(() => import("./safe_zone.js"), "mountSafeMap");

// Gradio's events are texts that only see globals. The other names are for the tests, which mount further live views.
/** @type {any} */ (window).LoraDrop = { ...gradioDoor(store), linkOf: (run) => linkOf(run, store.state.table), mountLive: view, pictures, readingPace, schedule, store };
