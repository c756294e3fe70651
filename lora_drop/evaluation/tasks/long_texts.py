"""Long texts whose generated answer is compared with references: LongBench."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from lora_drop.evaluation.tasks.base import Example, Task
from lora_drop.evaluation.tasks.reading import text_in, texts_in


class LongBench(Task):
    """Long texts: F1 of words (characters in Chinese) for questions, ROUGE-L for summaries; the best reference counts.

    Simple versions, without stemming and segmentation: they do not compare with published figures.
    """

    name, metric, accuracy = "longbench", "F1 or ROUGE-L", False
    summaries = ("gov_report", "qmsum", "multi_news", "vcsum", "samsum")
    prompts = {
        "multi_news": "You are given several news passages. Write a one-page summary of all news.\n\nNews:\n{context}"
        "\n\nNow, write a one-page summary of all the news.\n\nSummary:",
        "multifieldqa_zh": "阅读以下文字并用中文简短回答：\n\n{context}\n\n现在请基于上面的文章回答下面的问题，"
        "只告诉我答案，不要输出任何其他字词。\n\n问题：{input}\n回答：",
    }
    any_prompt = "Read the following text and answer briefly.\n\n{context}\n\n{input}\nAnswer:"

    def example(self, record: dict[str, Any], id: str, path: Path) -> Example:
        """See `Task.example`."""
        dataset, answers = text_in(record, "dataset"), texts_in(record, "answers")
        prompt = self.prompts.get(dataset, self.any_prompt)
        for field in ("context", "input"):  # not by format(): the texts may hold braces
            prompt = prompt.replace(f"{{{field}}}", text_in(record, field, may_be_empty=field == "input"))
        return Example(id, dataset, prompt, answers[0], references=answers)

    def score(self, example: Example, answer: str) -> float:
        """See `Task.score`."""
        measure = rouge_l if example.part in self.summaries else overlap_f1
        return max(measure(_words(answer), _words(reference)) for reference in example.references)


def _words(text: str) -> list[str]:
    """Lower-case words without punctuation; each Chinese, Japanese or Thai character is one."""
    return re.findall(
        r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|[^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]+", text.lower()
    )


def overlap_f1(ours: list[str], gold: list[str]) -> float:
    """F1 of the words in common, each counted as often as both have it."""
    return _f1(sum((Counter(ours) & Counter(gold)).values()), len(ours), len(gold))


def rouge_l(ours: list[str], gold: list[str]) -> float:
    """F1 of the longest common subsequence."""
    lengths = [0] * (len(gold) + 1)
    for word in ours:
        before = 0  # the cell above and one to the left
        for j, other in enumerate(gold, start=1):
            above = lengths[j]
            lengths[j] = before + 1 if word == other else max(lengths[j], lengths[j - 1])
            before = above
    return _f1(lengths[-1], len(ours), len(gold))


def _f1(common: int, ours: int, gold: int) -> float:
    return 2 * common / (ours + gold) if common else 0.0
