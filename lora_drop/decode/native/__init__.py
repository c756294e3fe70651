"""Decode steps in C, compiled once for this machine's processor and kept in the cache folder.

`loader.py` compiles and loads the library; without a C compiler, or with `LORA_DROP_NATIVE=0`, it gives None and torch
decodes. `weights.py` lays out a model's weights for the kernels, `decoder.py` is the decoder, `plan.py` what it keeps
for a lane. The C side begins with `abi.h`, which `structs.py` mirrors, and `step.c`.
"""
