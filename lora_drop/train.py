"""`accelerate launch -m lora_drop.train`: the old name of `lora_drop.training`, which existing scripts call.

It is a module beside the rooms because a launcher looks a module up by its name alone.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("lora_drop.training", run_name="__main__")
