/* A replay's entry: the live view, and the method in four steps under it. */

export { mountLive } from "./live/live.js";
export { mountBuildUp } from "./method/build_up.js";
