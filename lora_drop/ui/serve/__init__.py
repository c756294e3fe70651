"""Serving the page in public: who may ask for what, how often, and what is stored for whom.

`guard.py`, `uploads.py` and `connections.py` wrap the web server. `gradio_queue.py` and `gradio_private.py` change
Gradio where it has no setting. `policy.py` holds the limits, `owner.py` the counters and the owner's addresses,
`runs.py` the state of visitors' runs. `space.py` and `space_folder.py` serve a Space.
"""
