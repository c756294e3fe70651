"""The Safe zone tab: `tab.py` lays it out, `callbacks.py` serves it, `map.py` and `figures.py` make what it draws."""
