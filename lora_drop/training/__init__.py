"""Training of adapters: text in, one bank for every schedule out.

`train.py` runs the command, `trainer.py` the steps, `distill.py` has the loss. `student.py` and `exact.py` run a
schedule over a whole text in one pass. `settings.py` imports no torch.
"""
