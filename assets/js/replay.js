/* The entry of a replay: the live view, and the method in four steps below it. */

import { mountLive as live } from "./live/live.js";
import * as buildUp from "./method/build_up.js";

export { mountBuildUp } from "./method/build_up.js";
export const mountLive = (element, props, watch) => live(element, props, watch, async () => buildUp);
