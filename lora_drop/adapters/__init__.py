"""Adapters: trained corrections in a folder. `bank.py` saves, loads and checks them; `find.py` resolves `auto`, folder
names and Hub names. The tensors themselves are `decode.correction.Correction`.
"""
