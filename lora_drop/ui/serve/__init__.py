"""Serving the page in public: who may ask for what, how often, and what is kept for whom.

`guard.py`, `uploads.py` and `connections.py` wrap the web server; `gradio_queue.py` and `gradio_private.py` change
what Gradio offers no setting for; `policy.py` and `limits.py` hold the limits, `counters.py` the counts, `turns.py`
and `owner.py` share the device fairly; `kept.py` keeps things for a session; `space.py` and `space_folder.py` serve a
Space.
"""
