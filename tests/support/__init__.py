"""What several test files share: one home each. `tests/conftest.py` hands the fixtures among them to every test.

- `naive`: LoRA-Drop written a second time, as plainly as the formulas; the decoders are compared with it.
- `decoding`: a prompt, a forced continuation, random corrections.
- `loading`: what the door to the models says of a mistake.
- `tokenizer`: tiny tokenizers of each kind that models come with.
- `workshop`: the bundled model on a wheel of a few kB (fixture `shop`), and processes that die.
- `faults`: faults put into a run at a chosen place, and what must be left after one (fixtures `bank_shelf`, `caches`).
- `fuzzing`: hostile words, drawn values, mutations; how many inputs are tried.
- `calls`: the page's functions without a page (fixture `calls`).
- `commands`: every command on a tiny model, in a folder with what it reads (fixtures `workplace`, `offline`).
- `task_files`: the benchmarks' files, small (fixture `task_data`).
- `runs`: runs that no model made.
- `server`: a running page in this process, its runs recorded; `page`: what is done on it in a browser.
- `imports`: the imports between the rooms of the package, read from its files.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the repository
