"""Adapters: trained corrections in a folder. `bank.py` saves, loads, pushes and checks them, `hub.py` asks the Hub,
`card.py` writes the card, and `find.py` resolves `auto`, folder names and Hub names. The tensors themselves are
`decode.correction.Correction`.
"""
