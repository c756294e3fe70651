"""`python -m lora_drop`."""

import sys

from lora_drop.cli.main import main

sys.exit(main())
