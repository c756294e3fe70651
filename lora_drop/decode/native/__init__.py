"""Decode steps in C, compiled once for this machine's processor and kept in the cache folder.

`loader.py` compiles and loads the library; without a C compiler, or with `LORA_DROP_NATIVE=0`, there is none and torch
decodes. `weights.py` lays out a model's weights for the kernels, `decoder.py` is the decoder, `plan.py` its state of a
lane. Of the C side read `abi.h` first, which `structs.py` mirrors, then `step.c`.
"""
