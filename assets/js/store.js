/* The page's state and its views. A view subscribes to parts of the state and draws them into its elements; every
 * action of the reader is an update. So no view knows another.
 *
 * The page has one store. A live view without a page, as in a replay, makes another (live/live.js). */

/** @typedef {import("./records.js").Model} Model */
/** @typedef {import("./records.js").Settings} Settings */
/** @typedef {import("./records.js").PresetFacts} PresetFacts */

/**
 * @typedef {object} State
 * @property {Model | null} model the model that the page shows; null until a component sets it
 * @property {import("./records.js").Setting[]} table the settings behind the controls, in their order
 * @property {Record<string, Settings>} named settings by preset
 * @property {PresetFacts | null} presets the presets' measured results
 * @property {string} preset name of the chosen preset
 * @property {Settings | null} settings values of the controls; null until the forecast is mounted
 * @property {string | null} prompt the typed prompt; null while it is the page's first
 * @property {number} promptTokens tokens of the prompt
 * @property {{labels: string[], value: import("./records.js").PageFacts | null} | null} facts the models that can be
 *   chosen, and the facts of the chosen one
 * @property {boolean} isChosen the visitor chose the model; without it the settings may come from a link
 * @property {import("./export/link.js").Link | null} link the link in the page's address
 * @property {import("./run.js").Run | null} run the current run; it grows in place
 * @property {number} revision number of times that the run has grown
 * @property {number} focus index of the lane in the charts
 * @property {number | null} step position of the scrubber; null is the run's live end
 * @property {number | null} moment milliseconds on the lanes' clocks while the run is played, else null
 * @property {boolean} isSameStep all lanes show the same step, not the same time
 * @property {number | null} layer the layer whose drift is drawn beside the mean
 * @property {boolean} isTalk the talk mode is on
 * @property {boolean} isMoved a control was moved since the page opened, so the button says Run
 * @property {boolean} isAsked Run was pressed, and the run has not started
 * @property {boolean} isUnfolding the run is played for the first time, and has not reached its end
 * @property {boolean} isBlind the next run is hidden until the visitor has voted (pins/blind.js)
 * @property {number | null} hover the step under the pointer in a chart
 */

/**
 * @typedef {object} Store
 * @property {State} state read only; `update` changes it
 * @property {(changes: Partial<State>) => void} update set some values, and redraw the views that subscribed to them
 * @property {(keys: (keyof State)[], draw: (state: State) => void) => void} subscribe call `draw` after each update of a
 *   key; views draw in the order of their subscriptions
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
    isBlind: false,
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

/**
 * Label of the page's one button: "Show me" runs the first preset, "Run" the controls' settings.
 *
 * @param {State} state
 */
export const runLabel = ({ isMoved }) => (isMoved ? "Run" : "Show me");

/** The page's store. */
export const store = createStore();
