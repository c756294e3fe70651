/* Reads a run's wire text (lora_drop/run/wire.py) as it grows. */

import { Run } from "./run.js";

// A step's line begins with its lane's number; lines of other records add one of these to it.
const AUDIT = 100;
const FIGURES = 200; // of the run so far: no lane
const REWIND = 300; // drafts that the full model rejected
const JUDGE = 400; // the full model has verified a lane's last drafts

/** Builds a run from its wire text. */
export class WireReader {
  /** @type {Run | null} */
  run = null;
  /** @type {string | null} */
  runId = null;
  isWhole = false; // the text is complete
  taken = 0; // characters read so far

  /**
   * Read the complete lines that were appended. A text that does not continue the last text is another run.
   *
   * @param {string} text
   * @returns {boolean} true if there was a complete line
   */
  take(text) {
    if (text.length < this.taken || (this.runId && !text.startsWith(`{"type":"run","id":"${this.runId}"`))) {
      this.taken = 0;
      this.run = this.runId = null;
    }
    const end = text.lastIndexOf("\n") + 1;
    if (end <= this.taken) return false;
    const lines = text.slice(this.taken, end).split("\n");
    this.taken = end;
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
