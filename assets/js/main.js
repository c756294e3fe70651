/* The page's entry: what its components mount (lora_drop/ui/components.py), each with the page's one store. */

import { mountCompare as compare } from "./controls/compare.js";
import { gradioDoor } from "./controls/gradio.js";
import { mountFacts as facts } from "./controls/models.js";
import { mountPresets as presets } from "./controls/preset_table.js";
import { mountRange as range } from "./controls/range.js";
import { mountRunButton } from "./controls/run_button.js";
import { mountProgress as progress, mountStatus as status } from "./controls/status.js";
import { mountWhatIf as whatIf } from "./controls/what_if.js";
import { linkOf } from "./export/link.js";
import * as pictures from "./export/picture.js";
import { late } from "./late.js";
import { mountLive as live } from "./live/live.js";
import { readingPace } from "./pace.js";
import * as schedule from "./schedule.js";
import { store } from "./store.js";

export const mountCompare = (element, props, watch) => compare(element, props, watch, store);
export const mountFacts = (element, props, watch) => facts(props, watch, store);
export const mountLive = (element, props, watch, server) => live(element, props, watch, server, store);
export const mountPresets = (element, props, watch, trigger) => presets(element, props, watch, trigger, store);
export const mountRange = (element, props, watch, trigger) => range(element, props, watch, trigger, store);
export const mountProgress = progress;
export const mountStatus = (element, props, watch) => status(element, props, watch, store);

export function mountWhatIf(element, props, server) {
  whatIf(element, props, server, store);
  mountRunButton(store);
}

// Of the other tabs, whose components Gradio mounts when their tab is first opened.
const method = late(() => import("./method/method.js"), "mountMethod");
export const mountDial = late(() => import("./explore.js"), "mountDial");
export const mountFigure = late(() => import("./safe_zone.js"), "mountFigure");
export const mountMethod = (element, server) => method(element, server, store);
export const mountSafeMap = late(() => import("./explore.js"), "mountSafeMap");

// Gradio's events are texts that only see what is global. The tests use the rest; a live view that they mount has a
// store of its own.
/** @type {any} */ (window).LoraDrop = { ...gradioDoor(store), linkOf: (run) => linkOf(run, store.state.table), mountLive: live, pictures, readingPace, schedule, store };
