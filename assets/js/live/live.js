/* The live view: text panes, figures and charts of a run while its wire text grows. */

import { Charts } from "../charts/charts.js";
import { mountCycle } from "../charts/cycle.js";
import { mountMethods } from "../charts/methods.js";
import { mountParts } from "../charts/parts.js";
import { mountRace } from "../charts/race.js";
import { mountStack } from "../charts/stack.js";
import { find, withNextFrame } from "../dom.js";
import { mountLinkNote } from "../export/link.js";
import { mountMenu } from "../export/menu.js";
import { mountTalk } from "../export/talk.js";
import { mountInspector } from "../inspect/inspector.js";
import { mountPins } from "../pins/pins.js";
import { Player } from "../player.js";
import { createStore } from "../store.js";
import { WireReader } from "../wire.js";
import { mountFigures } from "./figures.js";
import { Panes } from "./panes.js";
import { mountSpoken } from "./spoken.js";
import { mountTip } from "./tip.js";
import { mountVerdict } from "./verdict.js";

/** @typedef {import("../run.js").Run} Run */

/**
 * Mount the view. props.value is the wire text so far, props.model the loaded model's facts. A replay has no facts, no
 * server and no page: its view makes a store.
 *
 * @param {HTMLElement} element
 * @param {import("../records.js").Props} props
 * @param {import("../records.js").Watch} watch
 * @param {() => Promise<typeof import("../method/build_up.js")>} loadBuildUp the Method's drawings, for the talk mode
 * @param {any} [server] the server functions of LiveView (lora_drop/ui/components.py)
 * @param {import("../store.js").Store} [store]
 */
export function mountLive(element, props, watch, loadBuildUp, server = null, store = createStore()) {
  const root = find(element, ".ld-live");
  if (props.model && !store.state.model) store.update({ model: props.model });
  // Views draw in the order of their subscriptions: text and figures at once, the charts over the next frames.
  // "Show me" adds a lane without corrections if the model has any.
  const lanes = Object.keys(props.model?.banks ?? {}).length ? 3 : 2;
  root.dataset.lanes = String(lanes);
  const panes = new Panes(root, store, (step) => player.moveTo(step), lanes);
  mountFigures(root, store);
  const charts = new Charts(root, store, (step) => player.moveTo(step));
  mountRace(root, store, (step) => player.moveTo(step));
  mountStack(root, store, (step) => player.moveTo(step));
  mountMethods(root, store);
  mountParts(root, store);
  mountCycle(root, store);
  const player = new Player(root, store);
  mountTip(root, store, panes);
  mountMenu(root, server, store, (figure) => charts.complete(figure));
  mountTalk(root, store, loadBuildUp);
  mountInspector(root, store, server);
  mountPins(root, store, server);
  store.subscribe(["run"], ({ run }) => run && showBegin(root, run));
  store.subscribe(["revision", "isUnfolding"], ({ run, isUnfolding }) => {
    if (run?.summary && !run.isRecorded) root.dataset.state = isUnfolding ? "playing" : "done";
  });
  mountVerdict(root, store);
  mountSpoken(root, store);
  mountLinkNote(root, store);
  if (server) mountRecorded(server, store);
  readWire(props, watch, store);
}

/** Set the root's attributes, for style sheets and tests. */
function showBegin(root, run) {
  root.loraDropRun = run;
  root.dataset.lanes = run.lanes.length;
  root.dataset.state = run.isRecorded ? "recorded" : "running";
  root.dataset.run = run.id;
}

/** Read the value whenever it grows, and draw it with the next frame. */
function readWire(props, watch, store) {
  const reader = new WireReader();
  const draw = withNextFrame(() => {
    if (reader.run) store.update({ revision: store.state.revision + 1 });
  });

  function take() {
    const before = reader.run;
    const isMore = reader.take(props.value ?? "");
    if (reader.run !== before) store.update({ run: reader.run, layer: null, isAsked: false });
    if (isMore) draw();
  }

  watch("value", take);
  take();
}

const PATIENCE_MS = 1500; // a run that starts sooner needs no recorded one

/**
 * Play a recorded run, labelled as such, while a visitor waits for a first run (in the queue, or while a model loads).
 *
 * @param {{recorded_run: (argument: null) => Promise<string>}} server
 * @param {import("../store.js").Store} store
 */
function mountRecorded(server, store) {
  let timer = 0;
  const isWaiting = () => store.state.isAsked && !store.state.run && !store.state.isBlind;

  async function show() {
    let text;
    try {
      text = await server.recorded_run(null);
    } catch {
      return; // the status line reports the error
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
