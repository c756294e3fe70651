"""A tiny tokenizer of each kind that models come with."""

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def make_tokenizer(kind: str = "bytes", template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A tiny tokenizer: `bytes` as GPT-2 has them, or SentencePiece's way with a space before the text's first word
    (`first`), or before that and after every marker (`each`)."""
    marks = ["<|start|>", "<|end|>", "<|tool|>"]
    letters, merges = sorted(pre_tokenizers.ByteLevel.alphabet()), [("Ġ", "a"), ("Ċ", "Ċ")]
    if kind != "bytes":
        letters, merges = ["▁", "\n", *(chr(i) for i in range(32, 127))], [("▁", "a"), ("▁", "b"), ("u", "s")]
    vocab = {piece: i for i, piece in enumerate([*marks, *letters, *(a + b for a, b in merges)])}
    backend = Tokenizer(tokenizer_models.BPE(vocab, merges))
    if kind == "bytes":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    elif kind == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    start = ("<|start|>", vocab["<|start|>"])
    backend.post_processor = processors.TemplateProcessing(single="<|start|> $A", special_tokens=[start])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|start|>", eos_token="<|end|>", chat_template=template
    )
    tokenizer.add_tokens(["<|tool|>"])  # added, but not special: `split_special_tokens` would leave it whole
    return tokenizer
