"""`accelerate launch -m lora_drop.train`: the old name of `lora_drop.training`, which scripts out there call.

A module of its own beside the rooms, as a launcher finds a module by its name alone.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("lora_drop.training", run_name="__main__")
