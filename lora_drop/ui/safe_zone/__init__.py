"""The Safe zone tab: `tab.py` lays it out, `callbacks.py` serves it, `views.py` has its components."""
