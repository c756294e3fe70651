"""Decode steps in C: a wheel has them for every processor of its platform, a checkout compiles them for this one.

`loader.py` loads the library or compiles it; with neither a wheel's nor a C compiler, or with `LORA_DROP_NATIVE=0`,
torch decodes. `weights.py` lays out a model's weights for the kernels, `decoder.py` is the decoder, `plan.py` a
lane's state. Of the C side read `abi.h` first, which `structs.py` mirrors, then `step.c`.
"""
