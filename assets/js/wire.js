/* Reads the run's wire text (lora_drop/run/trace/records.py, wire_line) as it grows. */

import { Run } from "./run.js";

const AUDIT = 100; // an audit line starts with 100 + its lane
const FIGURES = 200; // what the line of the figures so far starts with
const REWIND = 300; // what takes steps back starts with 300 + its lane
const JUDGE = 400; // the last pass over drafts with 400 + its lane

/** What was read of a text so far, as a run. */
export class WireReader {
  constructor() {
    /** @type {Run | null} */
    this.run = null;
    /** @type {string | null} */
    this.runId = null;
    this.isWhole = false; // nothing more will come
    this.read = 0; // characters
  }

  /**
   * Read the complete lines that were appended; a text that does not go on is another run.
   *
   * @param {string} text
   * @returns {boolean} whether there were any
   */
  take(text) {
    if (text.length < this.read || (this.runId && !text.startsWith(`{"type":"run","id":"${this.runId}"`))) {
      this.read = 0;
      this.run = this.runId = null;
    }
    const end = text.lastIndexOf("\n") + 1;
    if (end <= this.read) return false;
    const lines = text.slice(this.read, end).split("\n");
    this.read = end;
    for (const line of lines) if (line) this.takeLine(JSON.parse(line));
    return true;
  }

  /** A line: an array is a step of the run or what is said of some, an object says what it is. */
  takeLine(values) {
    if (!Array.isArray(values)) {
      if (values.type === "run") [this.runId, this.isWhole] = [values.id, Boolean(values.whole)];
      else if (values.type === "header") this.run = new Run(this.runId ?? "", values, this.isWhole);
      else if (values.type === "inside" && this.run) this.run.inside = values;
      else if (values.type === "answers" && this.run) this.run.answers = values.pairs;
      else if (this.run) this.run.end(values);
    } else if (values[0] === FIGURES) {
      this.run?.setFigures(values);
    } else if (values[0] >= JUDGE) {
      this.run?.judge(values[0] - JUDGE, values);
    } else if (values[0] >= REWIND) {
      this.run?.rewind(values[0] - REWIND, values);
    } else if (values[0] >= AUDIT) {
      this.run?.addAudit(values[0] - AUDIT, values);
    } else {
      this.run?.addStep(values);
    }
  }
}
