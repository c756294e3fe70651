"""LoRA-Drop decoding in the Hub's `custom_generate` convention: a shim over the `lora_drop` package."""

import copy

# transformers tells a user to install the names that it finds here under no `try`. On the package index this one is
# not ours.
try:
    import lora_drop as package
except ImportError:
    package = None


def generate(
    model,
    *args,
    lora_drop=None,
    adapters=None,
    streamer=None,
    assistant_model=None,
    tokenizer=None,
    stop_strings=None,
    generation_config=None,
    **kwargs,
):
    """`model.generate(..., custom_generate=REPOSITORY, trust_remote_code=True, lora_drop="balanced")`.

    All other arguments are those of `model.generate`. `lora_drop` is a preset's name, a dict of LoraDropConfig's
    fields or a LoraDropConfig; `adapters` the path of an adapter folder, or a bank.
    """
    if package is None:
        raise ImportError(
            "this decoding needs LoRA-Drop Studio, which is on no package index: run `pip install .` in its checkout, "
            "or install the file of its wheel."
        )
    if assistant_model is not None:
        raise package.LoraDropError("assistant_model is not supported: with accept, LoRA-Drop is a draft of its own.")
    if generation_config is not None and generation_config.stop_strings:
        stop_strings = stop_strings or generation_config.stop_strings
        generation_config = copy.deepcopy(generation_config)
        generation_config.stop_strings = None  # transformers would ask for the tokenizer, and not hand it on
    return model.generate(
        *args,
        custom_generate=package.with_(streamer=streamer, tokenizer=tokenizer),
        lora_drop=lora_drop,
        adapters=adapters,
        stop_strings=stop_strings,
        generation_config=generation_config,
        **kwargs,
    )
