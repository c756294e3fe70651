/* Types of the server's data (lora_drop/run/wire.py, lora_drop/ui/facts.py). Nothing here runs. */

/**
 * @typedef {object} Shape fields of ModelShape
 * @property {number} num_layers
 * @property {number} hidden_size
 * @property {number} num_heads
 * @property {number} num_kv_heads
 * @property {number} head_dim
 * @property {number} intermediate_size
 * @property {number} vocab_size
 * @property {boolean} [tied]
 * @property {boolean} qkv_bias
 * @property {boolean} qk_norm
 * @property {number} matrix_size bytes of a matrix's number, as a multiple of an activation's: matrices may be packed
 * @property {number} head_size
 * @property {number} part_size of the corrections
 * @property {number} code_size of a code of a screened head
 * @property {number[][]} [layer_sizes] instead of matrix_size: for each layer the size of k and v, attention, MLP
 */

/**
 * @typedef {object} Bank trained corrections
 * @property {string} name
 * @property {number} rank
 * @property {number[]} corrected layers with a correction
 * @property {number | null} tokens number of tokens in the training
 * @property {number} head_rank of its screened head
 * @property {number} head_best
 */

/**
 * @typedef {object} Extras reads of LoRA steps beside the paper's correction: `Extras` in lora_drop/method/cost.py
 * @property {number} head_rank
 * @property {number} head_best
 * @property {number} code_size
 */

/**
 * @typedef {object} MeasuredRow a measured setting, of forecast_facts
 * @property {string} label
 * @property {string} reuse
 * @property {string} part
 * @property {string} refresh
 * @property {boolean} corrected
 * @property {boolean} early it may refresh early
 * @property {number[]} layers skipped
 * @property {number[] | null} range that they are spread over; null if they were chosen
 * @property {number} period
 * @property {number} accept
 * @property {number | null} regret nats per token
 * @property {string | null} reads "reads well"
 * @property {number | null} chance that a draft is accepted if those before it were
 */

/**
 * @typedef {object} Model model_facts
 * @property {string} id
 * @property {string} device
 * @property {string} decoder
 * @property {string} dtype
 * @property {number} itemsize
 * @property {Record<string, Bank>} banks by "rule/part/refresh/kv"
 * @property {string | null} train command that trains corrections for a model without any
 * @property {Shape} shape
 * @property {number} droppable
 */

/**
 * @typedef {object} Settings values of the controls
 * @property {number} period
 * @property {[number, number] | number[]} layers first and last droppable layer
 * @property {number} drop_ratio
 * @property {string} drop_layers exact layers, such as "4,6,8"
 * @property {string} reuse
 * @property {string} part
 * @property {string} kv
 * @property {string} adapters
 * @property {number} max_new_tokens
 * @property {string} [lanes] the lanes but for the compared one
 * @property {string} [compare] name of the third lane's comparison; empty for none
 * @property {string} refresh
 * @property {number} accept
 * @property {string} head
 * @property {string} [refresh_entropy]
 * @property {string} [refresh_position]
 * @property {boolean} corrections
 * @property {boolean} [own_repeats]
 */

/**
 * @typedef {object} Setting an entry of the table of settings: `Setting.facts` in lora_drop/method/settings.py
 * @property {string} name
 * @property {"schedule" | "run"} of
 * @property {"whole" | "number" | "choice" | "flag" | "range" | "list" | "text"} kind
 * @property {boolean} off it may be empty
 * @property {string} default as a text
 * @property {number} [low]
 * @property {number} [high]
 * @property {boolean} [above] `low` itself is excluded
 * @property {string[]} [words]
 */

/**
 * @typedef {object} Measured
 * @property {number | null} regret nats per token
 * @property {number | null} speedup on this machine
 * @property {number | null} kv_saved
 */

/**
 * @typedef {object} Preset
 * @property {string} name
 * @property {string} label
 * @property {string} note
 * @property {Measured | null} measured
 * @property {Measured | null} [bare] without its corrections
 * @property {"well" | "slips" | "badly" | null} [reads]
 * @property {string} [short] "reads well, 1.2x"
 */

/**
 * @typedef {object} PresetFacts preset_facts
 * @property {Preset[]} presets
 * @property {string} default
 * @property {{prompts: number, device: string, dtype: string, date: string}} about
 * @property {string} criterion when a text reads well, slips or reads badly
 * @property {{rows: MeasuredRow[], near: number, slower: number}} forecast the measured settings, how far one may be from
 *   the settings to tell about them, and the speedup below which a setting is slower
 * @property {boolean} is_calibrated its speeds were measured on this machine
 * @property {boolean} is_calibrating they will be, while nobody runs
 * @property {{label: string, period: number, speedup: number | null, bound: number} | null} head the full model with the
 *   screened head
 * @property {string | null} missing reason for missing figures
 */

/** @typedef {{model: Model, settings: Record<string, Settings>, presets: PresetFacts}} PageFacts page_facts */

/**
 * @typedef {object} Schedule which layers run when
 * @property {number} period
 * @property {number} numLayers
 * @property {number[]} dropped
 * @property {string} reuse
 * @property {string} part
 * @property {string} kv
 * @property {number[] | null} [corrected] skipped layers with corrections; by default all
 * @property {Extras} [extras] sizes of its screened head
 * @property {string} [refresh] `single` or `repair`
 * @property {number} [accept]
 * @property {string} [head] `full` or `screened`
 * @property {number | null} [refresh_position] steps with a multiple of it as position are full too
 * @property {boolean} [mayBeEarly] a refresh may come early
 */

/**
 * @typedef {object} LaneConfig
 * @property {number} period
 * @property {number[]} dropped
 * @property {number[]} [corrected]
 * @property {number[] | null} [layers]
 * @property {number} [drop_ratio]
 * @property {number[] | null} [drop_layers]
 * @property {string} reuse
 * @property {string} part
 * @property {string} kv
 * @property {string} [adapters]
 * @property {number} [rank]
 * @property {string} [refresh]
 * @property {number} [accept]
 * @property {string} [head]
 * @property {Partial<Extras>} [extras]
 * @property {number | null} [refresh_entropy]
 * @property {number | null} [refresh_position]
 * @property {number} [lookup] of prompt lookup: the longest n-gram
 */

/**
 * @typedef {object} Header a run's first record
 * @property {{id: string, label: string, config: LaneConfig}[]} lanes
 * @property {{id: string, revision: string, layers: number, dtype: string, kv_bytes_per_token: number, shape?: Shape}} model
 * @property {{name: string, decoder: string}} device
 * @property {string} prompt
 * @property {number} prompt_tokens
 * @property {number} seed
 * @property {any} sampling
 * @property {Record<string, any>} [software] versions, and when it was recorded
 * @property {string} main id of the main lane; on the wire only
 * @property {{command: string, python: string}} commands that repeat the run; on the wire only
 * @property {{lanes: Record<string, string[]>, run: string[]}} words settings in words, of each lane and of all lanes; on
 *   the wire only
 */

/**
 * @typedef {object} Figures a run's figures so far (lora_drop/run/report/report.py)
 * @property {number | null} speedup
 * @property {number | null} bound
 * @property {number | null} kv_saved
 * @property {number | null} first_divergence
 * @property {number | null} top1_agreement
 * @property {number | null} quality_loss regret of its own text, nats a token
 * @property {number | null} accepted share of the drafts that were accepted
 * @property {boolean} by_chance the speedup is above the bound
 */

/**
 * @typedef {object} Summary a run's last record
 * @property {Record<string, {tokens_per_second: number, text_sha256?: string}>} lanes
 * @property {number | null} speedup
 * @property {number | null} bound
 * @property {number | null} kv_saved
 * @property {number | null} first_divergence
 * @property {number | null} top1_agreement
 * @property {number[] | null} [speedup_interval]
 * @property {{speedup: string | null, lanes: Record<string, string>}} words words instead of the speedup's number, and
 *   notes on lanes that loop; on the wire only
 */

/**
 * @typedef {object} Part part of the time of an accepted token
 * @property {string} id
 * @property {string} label
 * @property {number} ms negative if it saves time
 */

/**
 * @typedef {object} LaneRow a lane of a run of methods (lora_drop/run/report/table.py)
 * @property {string} label
 * @property {number | null} tokens_per_second
 * @property {number | null} speedup
 * @property {number[] | null} speedup_interval
 * @property {number | null} layer_runs reads of a layer's weights, a token
 * @property {number | null} layer_rows tokens that a layer computed, a token
 * @property {number | null} bytes a token
 * @property {number} drafts
 * @property {number | null} accepted
 * @property {string} text
 * @property {number} kv_bytes
 * @property {boolean | null} is_trained
 * @property {string | null} note
 */

/** @typedef {{id: string, value: string, label: string, detail: string}} VerdictFigure (lora_drop/run/report/headline.py) */

/**
 * @typedef {object} Report report of a run that has ended (lora_drop/run/report)
 * @property {{kind: string, text: string, facts: Record<string, any>, figures?: VerdictFigure[], line?: string}} [verdict]
 * @property {Record<string, string | null>} [why] a sentence for each chart
 * @property {LaneRow[]} [table] of a run of methods
 * @property {{parts: Part[], total: number, outside?: {own: number, full: number} | null, bound: number | null, bound_with_repairs: number | null} | null} [parts]
 */

/**
 * What Gradio passes to a component's script: the element, its props (Gradio receives a value that is set), a way to watch
 * for changes, and a way to trigger an event.
 *
 * @typedef {any} Props
 * @typedef {(name: string, changed: () => void) => void} Watch
 * @typedef {(event: string) => void} Trigger
 */

export {};
