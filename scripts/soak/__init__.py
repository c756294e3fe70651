"""Many visitors at once: `make soak`, or `python -m scripts.soak --minutes 10 --visitors 50 --seed 0`.

The app runs in another process, on this machine's address, with a tiny model. Visitors ask, wait, press Stop,
reload and vanish at random, all drawn from one seed. Each answer is compared with that of a single user, computed here
by `run.run`: every record without its times, a lane at a time. An answer that was cut short (stopped, or its visitor
left) must be the start of it. The server's memory, threads, file descriptors and temporary files are counted too. The
output is a table and one line of JSON; the exit code is 1 if anything failed.
"""

from lora_drop import runtime

runtime.configure()  # before any module of this package imports torch
