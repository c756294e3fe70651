"""A run, or a sweep, as files for others: `html.replay_html`, `chrome.chrome_trace`, `replay_space.build`, `figures`.
`reading.py` does such work for the page, a stranger's trace in a separate process.

All of it is made from records and rows. No export runs a model or imports torch.
"""
