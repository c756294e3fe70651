"""Prompts of the page, of the stored samples, and for choosing settings. None of them is in a training text.

Figures are reported on others: `REPORT_PROMPTS`, a file of assets.
"""

from __future__ import annotations

from lora_drop.paths import HELD_OUT_PROMPTS

EXAMPLES = {  # by the label of their button
    "Blue sky": "Explain why the sky is blue.",
    "Story": "Write a short story about a lighthouse keeper who collects lost letters.",
    "Tips": "List five practical tips for learning a new language.",
    "Python": "What is the difference between a list and a tuple in Python? Give an example.",
}
SAMPLE_PROMPTS = (
    *EXAMPLES.values(),
    "Why do we always see the same side of the Moon?",
    "A train leaves at 9:40 and arrives at 11:15. How long does the journey take? Show your steps.",
)
# Questions for choosing settings and adapters; training prompts have other forms.
HELD_OUT = tuple(HELD_OUT_PROMPTS.read_text(encoding="utf-8").splitlines())
