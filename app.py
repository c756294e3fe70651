"""LoRA-Drop Studio: `python app.py` opens the page on the bundled model. Also the entry of a HuggingFace Space."""

import sys

from lora_drop.errors import no_package  # `import lora_drop` sets up OpenMP, and comes before the first `import torch`

try:
    from lora_drop.ui import main
except ModuleNotFoundError as error:
    sys.exit(f"app.py: {no_package(error)}")

if __name__ == "__main__":
    sys.exit(main())
