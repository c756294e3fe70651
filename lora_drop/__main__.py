"""`python -m lora_drop`."""

import sys

from lora_drop.cli import main

sys.exit(main())
