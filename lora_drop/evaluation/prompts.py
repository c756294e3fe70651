"""The prompts that the page offers and that the stored samples answer. None of them is in a text for training."""

from __future__ import annotations

EXAMPLES = {
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
