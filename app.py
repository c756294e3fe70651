"""LoRA-Drop Studio: `python app.py` opens the page on the bundled model. Also the entry of a HuggingFace Space."""

import sys

from lora_drop.ui import main  # `import lora_drop` sets up OpenMP, and comes before the first `import torch`

if __name__ == "__main__":
    sys.exit(main())
