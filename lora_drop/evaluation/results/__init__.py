"""Stored results: `store.py` keeps them on disk, and `files.py` has one kind of file a command.

`preset_results.py` reads the presets' figures, `safe_zone.py` and `dial.py` choose among rows.
"""
