"""LoRA-Drop decoding in the Hub's `custom_generate` convention: a shim over the `lora_drop` package."""

import functools

import lora_drop as package


def generate(model, *args, lora_drop=None, adapters=None, streamer=None, **kwargs):
    """`model.generate(..., custom_generate=REPOSITORY, trust_remote_code=True, lora_drop=LoraDropConfig(...))`.

    All other arguments are those of `model.generate`. `lora_drop` may also be a dict of LoraDropConfig's fields, and
    `adapters` the path of an adapter folder.
    """
    if isinstance(lora_drop, dict):
        lora_drop = package.LoraDropConfig(**lora_drop)
    if isinstance(adapters, str):
        adapters = package.AdapterBank.load(adapters)
    bound = functools.partial(package.generate, lora_drop=lora_drop, adapters=adapters, streamer=streamer)
    return model.generate(*args, custom_generate=bound, **kwargs)
