"""Tasks with choices, scored by the likeliest one: HellaSwag, XCOPA, XNLI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_drop.evaluation.tasks.base import Example, Task
from lora_drop.evaluation.tasks.reading import BrokenRecord, index_in, text_in, texts_in


class HellaSwag(Task):
    """Which of four endings continues the text."""

    name, chance = "hellaswag", 0.25

    def example(self, record: dict[str, Any], id: str, path: Path) -> Example:
        """See `Task.example`."""
        choices = tuple(f" {ending}" for ending in texts_in(record, "endings"))
        gold = choices[index_in(record, "label", len(choices))]
        return Example(id, "hellaswag", text_in(record, "ctx"), gold, chat=False, choices=choices)


class XCOPA(Task):
    """Which of two sentences is the cause or the effect, joined by a word of the language, as in lm-eval."""

    name, chance, parallel = "xcopa", 0.5, True
    patterns = ("test.*.jsonl", "*.jsonl")  # validation files only where there are no others
    joints = {
        "en": ("because", "therefore"),
        "et": ("sest", "seetõttu"),
        "ht": ("poukisa", "donk sa"),
        "id": ("karena", "maka"),
        "it": ("perché", "quindi"),
        "qu": ("imataq", "chaymi"),
        "sw": ("kwa sababu", "kwa hiyo"),
        "ta": ("காரணமாக", "எனவே"),
        "th": ("เพราะ", "ดังนั้น"),
        "tr": ("çünkü", "bu yüzden"),
        "vi": ("bởi vì", "vì vậy"),
        "zh": ("因为", "所以"),
    }

    def example(self, record: dict[str, Any], id: str, path: Path) -> Example:
        """See `Task.example`."""
        language = _language(path)
        question = record.get("question")
        if question not in ("cause", "effect"):
            raise BrokenRecord("the field 'question' is neither cause nor effect")
        joint = self.joints.get(language, self.joints["en"])[question == "effect"]
        premise = text_in(record, "premise").strip().rstrip(".。")
        options = (text_in(record, name) for name in ("choice1", "choice2"))
        choices = tuple(f" {option[0].lower()}{option[1:]}" for option in options)
        gold = choices[index_in(record, "label", 2)]
        return Example(id, language, f"{premise} {joint}", gold, chat=False, choices=choices)


class XNLI(Task):
    """Entailment, neutral or contradiction: the word that makes `premise, right? WORD, hypothesis` likeliest, as in
    lm-eval. Languages without words here use the English ones."""

    name, chance, parallel = "xnli", 1 / 3, True
    patterns = ("*.tsv",)
    labels = ("entailment", "neutral", "contradiction")
    words = {
        "en": ("right", "Yes", "Also", "No"),
        "sw": ("sahihi", "Ndiyo", "Hivyo", "Hapana"),
        "ur": ("صحیح", "جی ہاں", "اس لئے", "نہیں"),
    }

    def example(self, record: dict[str, Any], id: str, path: Path) -> Example:
        """See `Task.example`."""
        language = _language(path)
        question, *answers = self.words.get(language, self.words["en"])
        label = record.get("label")
        if label not in self.labels:
            raise BrokenRecord(f"the field 'label' is none of {', '.join(self.labels)}")
        hypothesis = text_in(record, "sentence2")
        choices = tuple(f" {answer}, {hypothesis}" for answer in answers)
        gold = choices[self.labels.index(label)]
        prompt = f"{text_in(record, 'sentence1')}, {question}?"
        return Example(id, language, prompt, gold, chat=False, choices=choices)


def _language(path: Path) -> str:
    """`test.sw.000-249.jsonl` -> sw."""
    return path.name.split(".")[1]
