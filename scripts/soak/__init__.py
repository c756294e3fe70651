"""Many visitors at once: `make soak`, or `python -m scripts.soak --minutes 10 --visitors 50 --seed 0`.

The app runs in a process of its own, on this machine's own address, with a tiny model. Visitors ask, wait, press Stop,
reload and vanish at random, all drawn from one seed, and whatever a visitor sees is held against the answer that a
single user gets, computed here by `run.run`: every record but its times, a lane at a time. An answer that was cut
short (stopped, or its visitor left) must be the start of that one. Beside it the server's memory, threads, file
descriptors and temporary files are counted. A table and one line of JSON; the exit code is 1 if anything failed.
"""

from lora_drop import runtime

runtime.configure()  # before any module of this package imports torch
