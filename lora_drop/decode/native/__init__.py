"""Decode steps in C, compiled once for this machine's processor and kept in the cache folder.

Where there is no C compiler, or `LORA_DROP_NATIVE=0` says so, `library` gives None and decoding goes through torch's
own kernels.

- `library`: the compiled steps (`loader.py`);
- `lay_out`: a model's weights as they read them, `NativeWeights`, from its numbers or from `Packed` blocks
  (`weights.py`);
- `NativeDecoder`: the decoder on them (`decoder.py`), with what it knows of a lane (`plan.py`).

The C side begins with `abi.h`, which `structs.py` mirrors, and `step.c`.
"""

from lora_drop.decode.native.decoder import NativeDecoder
from lora_drop.decode.native.loader import library
from lora_drop.decode.native.weights import BLOCK_KINDS, Blocks, NativeWeights, Packed, lay_out

__all__ = ["BLOCK_KINDS", "Blocks", "NativeDecoder", "NativeWeights", "Packed", "lay_out", "library"]
