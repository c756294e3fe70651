/* The entry of a replay: the live view, and the method in four steps below it. */

export { mountLive } from "./live/live.js";
export { mountBuildUp } from "./method/build_up.js";
