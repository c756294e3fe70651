"""`python -m lora_drop`."""

import sys

from lora_drop.errors import no_package

try:
    from lora_drop.cli.main import main
except ModuleNotFoundError as error:
    sys.exit(f"lora-drop: {no_package(error)}")

sys.exit(main())
