"""Prompts of the page, of the stored samples, and of the measurements. None of them is in a training text."""

from __future__ import annotations

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
# Questions for measuring presets and settings. Training prompts have other forms.
HELD_OUT = (
    "How far away is the Sun, and how do we know?",
    "Which vitamins does an orange contain, and what are they good for?",
    "My bread did not rise. Name the likeliest reasons.",
    "How does a refrigerator keep food cold?",
    "Describe a perfect morning in a fishing village.",
    "Is it cheaper to cook at home or to eat out? Explain with rough numbers.",
    "What happens inside a computer when I press a key?",
    "Give a short history of the bicycle.",
    "How can a small shop attract more customers without spending much money?",
    "Explain the rules of chess to someone who has never played.",
    "If today is Wednesday, what day will it be in ten days? Show your reasoning.",
    "Write a product description for a backpack made of old sails.",
    "How did people keep time before clocks were invented?",
    "Who invented the telephone, and why is that still argued about?",
    "Write a Python script that reads a text file and prints its longest line.",
    "What makes a good leader? Support your view with an example.",
    "How does a solar panel turn light into electricity?",
    "Tell me about the Great Wall of China and why it was built.",
    "Which is heavier, a litre of water or a litre of oil? Explain.",
    "Suggest a menu for a vegetarian dinner with three courses.",
    "How do airplanes stay in the air?",
    "Tell a joke about a computer and explain why it is funny.",
    "A rectangle is 7 metres long and 4 metres wide. Find its area and its perimeter.",
    "How does the heart pump blood through the body?",
    "Imagine that gravity vanished for one minute. Describe what you would see.",
    "Translate 'Good morning, how are you?' into French and Spanish.",
    "How should I introduce myself at a conference?",
    "Describe how paper is made from wood.",
    "Which planet has the most moons, and how were they discovered?",
    "Write SQL that selects the ten newest orders of a customer.",
    "Does reading fiction make people kinder? Discuss.",
    "How do vaccines get tested before they are approved?",
)
