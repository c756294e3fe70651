"""Stored results: `store.py` keeps them on disk, `preset_results.py` and `sweep_file.py` read what was measured,
`safe_zone.py` and `dial.py` choose from it. Reading loads no torch."""
