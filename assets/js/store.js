/* The page's state and who draws from it. A view subscribes to the parts that it shows and draws them into its own
 * elements; whatever the reader does becomes an update. So no view knows another one.
 *
 * The page has one store. A live view of its own, as a replay has it, makes one for itself: see live/live.js. */

/** @typedef {import("./records.js").Model} Model */
/** @typedef {import("./records.js").Settings} Settings */
/** @typedef {import("./records.js").PresetFacts} PresetFacts */

/**
 * @typedef {object} State
 * @property {Model | null} model the model that the page shows; null until a component brought it
 * @property {import("./records.js").Setting[]} table the settings behind the controls, in their order
 * @property {Record<string, Settings>} named settings by preset
 * @property {PresetFacts | null} presets what the presets were measured to do
 * @property {string} preset name of the chosen preset
 * @property {Settings | null} settings what the controls say; null until the what-if strip is there
 * @property {string | null} prompt as typed; null while it is the page's first
 * @property {number} promptTokens tokens of the prompt
 * @property {{labels: string[], value: import("./records.js").PageFacts | null} | null} facts the models on offer, and
 *   the facts of the one that was chosen
 * @property {boolean} isChosen the visitor chose the model; a link brings settings of its own
 * @property {import("./export/link.js").Link | null} link what the page's address asks for
 * @property {import("./run.js").Run | null} run the run that is shown; it grows in place
 * @property {number} revision counts the times that the run has grown
 * @property {number} focus index of the lane that the charts are about
 * @property {number | null} step where the scrubber is; null is the run's live end
 * @property {number | null} moment milliseconds on the lane's clock while the run is played, else null
 * @property {boolean} isSameStep all lanes stand at the same step, not where their own clocks are
 * @property {number | null} layer the layer whose drift is shown beside the mean
 * @property {boolean} isTalk the talk mode is on
 * @property {boolean} isMoved a control was moved since the page opened: what runs is the visitor's own
 * @property {boolean} isAsked a run was asked for that has not begun
 * @property {boolean} isUnfolding the run is played for the first time: its end is not told yet
 * @property {number | null} hover the step that the pointer is at in a chart
 */

/**
 * @typedef {object} Store
 * @property {State} state to be read; it changes through `update` alone
 * @property {(changes: Partial<State>) => void} update take over some values, and notify who draws from them
 * @property {(keys: (keyof State)[], draw: (state: State) => void) => void} subscribe draw after each update of a key;
 *   those who subscribed first draw first
 */

/**
 * @returns {Store}
 */
export function createStore() {
  /** @type {State} */
  const state = {
    model: null,
    table: [],
    named: {},
    presets: null,
    preset: "custom",
    settings: null,
    prompt: null,
    promptTokens: 0,
    facts: null,
    isChosen: false,
    link: null,
    run: null,
    revision: 0,
    focus: 0,
    step: null,
    moment: null,
    isSameStep: false,
    layer: null,
    isTalk: false,
    isMoved: false,
    isAsked: false,
    isUnfolding: false,
    hover: null,
  };
  /** @type {{keys: (keyof State)[], draw: (state: State) => void}[]} */
  const views = [];
  return {
    state,
    update(changes) {
      Object.assign(state, changes);
      for (const { keys, draw } of views) if (keys.some((key) => key in changes)) draw(state);
    },
    subscribe(keys, draw) {
      views.push({ keys, draw });
    },
  };
}

/** The page's. */
export const store = createStore();
