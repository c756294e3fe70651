/* While a visitor waits for a first run (a queue, a model that loads), a recorded one is played, and labelled so. */

import { WireReader } from "../wire.js";

const PATIENCE_MS = 1500; // a run that begins sooner needs no other one before it

/**
 * @param {{recorded_run: (wanted: null) => Promise<string>}} server
 * @param {import("../store.js").Store} store
 */
export function mountRecorded(server, store) {
  let timer = 0;
  const isWaiting = () => store.state.isAsked && !store.state.run;

  async function show() {
    let text;
    try {
      text = await server.recorded_run(null);
    } catch {
      return; // the line below the button says what is wrong
    }
    const reader = new WireReader();
    reader.take(text);
    if (!reader.run || !isWaiting()) return;
    reader.run.isRecorded = true;
    store.update({ run: reader.run, layer: null });
    store.update({ revision: store.state.revision + 1 });
  }

  store.subscribe(["isAsked", "run"], () => {
    clearTimeout(timer);
    if (isWaiting()) timer = setTimeout(show, PATIENCE_MS);
  });
}
