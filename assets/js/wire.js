/* Reads a run's wire text (lora_drop/run/wire.py) as it grows. */

import { Run } from "./run.js";

// A line's first number is the lane plus one of these; a step's line adds nothing.
const AUDIT = 100;
const FIGURES = 200; // without a lane: the figures so far
const REWIND = 300;
const JUDGE = 400; // the last pass over drafts

/** Builds a run from its wire text. */
export class WireReader {
  /** @type {Run | null} */
  run = null;
  /** @type {string | null} */
  runId = null;
  isWhole = false; // the text is complete
  read = 0; // characters read

  /**
   * Read the complete lines that were appended. A text that does not continue the last one is another run.
   *
   * @param {string} text
   * @returns {boolean} true if there was a complete line
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

  /** Read a line: an object names its type; an array is a step, or a record about steps. */
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
