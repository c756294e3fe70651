"""Stored results: `store.py` keeps them on disk, `files.py` has one kind of file a command, `rows.py` reads a row.

`preset_results.py` has the presets' figures, which a run's header and the page quote; `safe_zone.py` chooses among
rows.
"""
