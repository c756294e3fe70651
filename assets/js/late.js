/* What only another tab needs is fetched when that tab is first opened. */

import { make } from "./dom.js";

const FAILED = "This part of the page could not be loaded: the server cannot be reached, or has been renewed. Reload the page.";

/**
 * A function that mounts a component once its module has come, or says in its place that it cannot.
 *
 * @param {() => Promise<any>} load
 * @param {string} mount the name of the module's own function
 * @returns {(element: HTMLElement, ...rest: any[]) => Promise<void>}
 */
export const late = (load, mount) => async (element, ...rest) => {
  try {
    await (await load())[mount](element, ...rest);
  } catch (error) {
    element.replaceChildren(Object.assign(make("p", "ld-failed", FAILED), { role: "alert" }));
    throw error;
  }
};
