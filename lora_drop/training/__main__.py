"""`python -m lora_drop.training`, and `accelerate launch -m lora_drop.training`: the command line's `train`."""

import sys

from lora_drop.cli.main import main

sys.exit(main(["train", *sys.argv[1:]]))
