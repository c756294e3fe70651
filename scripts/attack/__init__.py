"""Attacks that go on: `python -m scripts.attack --minutes 2 --addresses 4 --seed 0`, on this machine only.

The app runs as in `scripts.soak`. Attackers, each from another address, send what once brought the app down, by
row of the table of issue 27, and requests that a generator varies. Beside them a visitor asks the same short
question, again and again, and checks every answer. It fails where memory grows beyond what a public server may keep
plus 300 MB or stays 50 MB above that after half a minute, a file stays, a traceback is printed, an answer is wrong,
or a stop takes long. The visitor's times are printed, to be judged by hand: idle, under attack, and while
the attackers send the same to a stub, which shows what they themselves take of the machine.
"""

from lora_drop import runtime

runtime.configure()  # before any module of this package imports torch
