"""Training text that the model writes itself: seed prompts, and the replies that the full model samples to them.

A bank is trained for the text that this model will decode, and nothing is closer to it than its own replies; nobody
else has rights in them either. `self_generate` writes a JSON Lines file, `read_self_generated` reads its tokens.

The first line of a file names the model and the settings. Record n answers prompt n of `seed_prompts`, and its batch
draws from (seed, number of the batch), so a run that was killed and started again ends with the same file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from lora_drop.errors import LoraDropError
from lora_drop.models.load import LoadedModel
from lora_drop.models.tokens import encode_prompt
from lora_drop.training.prompts import seed_prompts

FORMAT, VERSION = "lora-drop-self-generated", 1
BATCH_SIZE = 32  # on a CPU 64 is no faster, and a kill costs at most one batch

# ---- the file -------------------------------------------------------------------------------------------------------


def self_generate(
    loaded: LoadedModel,
    count: int,
    path: str | Path,
    seed: int = 0,
    max_new_tokens: int = 256,
    temperature: float = 0.8,
    top_p: float = 0.95,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int, int], None] = lambda done, tokens: None,
) -> int:
    """Answer `count` seed prompts with the full model and append each to `path` as a line, batch by batch.

    A line is `{"prompt": ..., "text": the reply, "token_ids": [prompt, reply, end token if it was reached]}`. An
    existing file continues after its last whole record; one with `count` records or more is not changed. Only one
    process may write a file at a time.

    Args:
        loaded: from `load_model`; the text depends on its number type and kind of device too, so the file names them.
        count: records of the finished file. A higher count extends an existing file.
        seed: of the prompts' order and of the replies.
        max_new_tokens: most tokens of a reply, with its end token.
        temperature, top_p: of the sampling; temperature 0 is greedy.
        batch_size: replies that are sampled together. The text depends on it, so it is the same for a whole file.
        progress: called with (records in the file, reply tokens written by this call), first before any work.

    Returns:
        Records in the file.

    Raises:
        LoraDropError: a setting is invalid, the file is of another model or other settings, or there is no room for
            it. Records written before stay.
    """
    settings = _settings(count, seed, max_new_tokens, temperature, top_p, batch_size)
    header, path = _header(loaded) | settings, Path(path)
    content = _read(path) if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]  # a kill may have cut the last line short
    done = _records_there(path, content, whole, header, loaded)
    if whole == content and done >= count:
        progress(done, 0)
        return done
    prompts = seed_prompts(count, seed)
    encoded = _encoded(loaded, prompts, max_new_tokens)
    # Written before the first reply, so that a bad path is an error at once. A line cut short goes only now.
    _append(path, [] if whole else [_line(header)], len(whole), done)
    tokens = 0
    progress(done, tokens)
    for start in range(done - done % batch_size, count, batch_size):
        batch, own = encoded[start : start + batch_size], _batch_seed(seed, start // batch_size)
        replies = generate_batch(loaded, batch, max_new_tokens, temperature, top_p, own)
        lines = [
            _line({"prompt": prompts[n], "text": _text(loaded, replies[n - start]), "token_ids": ids})
            for n, ids in enumerate(map(list.__add__, batch, replies), start=start)
            if n >= done  # a batch may be there in part
        ]
        _append(path, lines, None, done)
        tokens += sum(map(len, replies[len(replies) - len(lines) :]))
        done += len(lines)
        progress(done, tokens)
    return done


def _header(loaded: LoadedModel) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": loaded.id,
        "revision": loaded.revision,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": loaded.device.type,
    }


def _records_there(path: Path, content: bytes, whole: bytes, header: dict[str, Any], loaded: LoadedModel) -> int:
    """Count the records of a file that can be continued.

    Raises:
        LoraDropError: it is a file of another kind, of another model or of other settings.
    """
    if not whole:
        if not _line(header).startswith(content):
            raise LoraDropError(f"{path.name} holds something else than self-generated text: name another file.")
        return 0
    own, records = _parse(path, whole, loaded)
    _check_header(path, own, header)
    for number, (record, prompt) in enumerate(
        zip(records, seed_prompts(len(records), header["seed"]), strict=True), start=2
    ):
        if record["prompt"] != prompt:
            raise LoraDropError(
                f"line {number} of {path.name} does not answer the prompt that belongs there, so it cannot go on: "
                "name another file."
            )
    return len(records)


def _encoded(loaded: LoadedModel, prompts: list[str], max_new_tokens: int) -> list[list[int]]:
    """Token ids of the prompts.

    Raises:
        LoraDropError: the longest prompt and its reply exceed the model's context.
    """
    encoded = [encode_prompt(loaded.tokenizer, prompt) for prompt in prompts]
    longest = max(map(len, encoded))
    if longest + max_new_tokens > loaded.context:
        raise LoraDropError(
            f"max_new_tokens {max_new_tokens} and the longest prompt's {longest} are more than the model's context of "
            f"{loaded.context}: lower max_new_tokens."
        )
    return encoded


class Text(list[int]):
    """Token ids of a text, with the number of them that are the prompt of a reply; 0 if it is no reply."""

    def __init__(self, ids: Sequence[int], prompt_tokens: int = 0):
        super().__init__(ids)
        self.prompt_tokens = prompt_tokens


def read_self_generated(path: str | Path, loaded: LoadedModel, limit: int | None = None) -> list[Text]:
    """Read each record, or the first `limit`; a last line that a kill cut short is left out.

    Raises:
        LoraDropError: the file is missing, of another model, or not self-generated text.
    """
    return [
        Text(record["token_ids"], len(encode_prompt(loaded.tokenizer, record["prompt"])))
        for record in _records(Path(path), loaded)[:limit]
    ]


def read_replies(path: str | Path, loaded: LoadedModel) -> list[tuple[list[int], int]]:
    """Token ids of each record with a reply of two tokens or more, and how many of them are its prompt.

    Raises:
        LoraDropError: as `read_self_generated`.
    """
    texts = read_self_generated(path, loaded)
    return [(text, text.prompt_tokens) for text in texts if len(text) > text.prompt_tokens + 1]


def is_self_generated(content: str) -> bool:
    """True if a file's content begins with the header of self-generated text."""
    return content.startswith(f'{{"format": "{FORMAT}"')


def _records(path: Path, loaded: LoadedModel) -> list[dict[str, Any]]:
    content = _read(path)
    header, records = _parse(path, content[: content.rfind(b"\n") + 1], loaded)
    if header.get("revision") != loaded.revision:
        raise LoraDropError(_other_model(path, header, loaded.id, loaded.revision))
    if not records:
        raise LoraDropError(f"{path.name} has no record yet.")
    return records


def _line(record: dict[str, Any]) -> bytes:
    """A record as ASCII, so that no reader takes a character inside it for the end of a line."""
    return json.dumps(record).encode("ascii") + b"\n"


def _text(loaded: LoadedModel, reply: list[int]) -> str:
    return loaded.tokenizer.decode(reply, skip_special_tokens=True)


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # reading a device may never end
        raise LoraDropError(f"{path.name} is not a file.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise LoraDropError(f"cannot read {path.name}: {error.strerror or error}.") from None


def _append(path: Path, lines: list[bytes], size: int | None, done: int) -> None:
    """Append lines, after cutting the file to `size` bytes unless that is None.

    Raises:
        LoraDropError: the file cannot be written; its `done` records stay.
    """
    try:
        with path.open("ab", buffering=0) as file:  # unbuffered: a line is in the file, or the error is raised here
            if size is not None:
                file.truncate(size)
            for line in lines:
                view = memoryview(line)
                while view:
                    view = view[file.write(view) :]
    except OSError as error:
        kept = f" The {done} records before it are kept: make room and start again." if done else ""
        raise LoraDropError(f"cannot write {path.name}: {error.strerror or error}.{kept}") from None


def _parse(path: Path, content: bytes, loaded: LoadedModel) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and records of whole lines. Raises LoraDropError with the first invalid line."""
    try:
        lines = content.decode("utf-8").split("\n")[:-1]
    except UnicodeDecodeError:
        raise LoraDropError(f"{path.name} is not UTF-8 text.") from None
    values = []
    for number, line in enumerate(lines, start=1):
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise LoraDropError(f"line {number} of {path.name} is not JSON: {error}.") from None
    header = values[0] if values else None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise LoraDropError(f"{path.name} holds something else than self-generated text: its first line is no header.")
    if header.get("version") != VERSION:
        raise LoraDropError(
            f"{path.name} has version {header.get('version')!r} of the format, this program knows {VERSION}."
        )
    vocabulary = loaded.model.config.vocab_size
    for number, record in enumerate(values[1:], start=2):
        ids = record.get("token_ids") if isinstance(record, dict) else None
        if not (isinstance(ids, list) and ids and isinstance(record.get("prompt"), str)):
            raise LoraDropError(f"line {number} of {path.name} is no record with a prompt and token_ids.")
        # Not isinstance: True is an int there.
        if wrong := [n for n in ids if type(n) is not int or not 0 <= n < vocabulary]:
            raise LoraDropError(
                f"line {number} of {path.name} has the token id {str(wrong[0])[:40]}, the model's are 0 to "
                f"{vocabulary - 1}."
            )
    return header, values[1:]


def _check_header(path: Path, own: dict[str, Any], header: dict[str, Any]) -> None:
    """Check that a run with `header` can continue a file with the header `own`."""
    if own.get("revision") != header["revision"]:
        raise LoraDropError(_other_model(path, own, header["model"], header["revision"]) + " Name another file.")
    for name in ("dtype", "device", "seed", "max_new_tokens", "temperature", "top_p", "batch_size"):
        if own.get(name) != header[name]:
            raise LoraDropError(
                f"{path.name} was written with {name} {own.get(name)}, this run has {header[name]}: use the same "
                "settings, or name another file."
            )


def _other_model(path: Path, header: dict[str, Any], name: str, revision: str) -> str:
    return (
        f"{path.name} was written by another model: {header.get('model')} ({header.get('revision')}), this is {name} "
        f"({revision})."
    )


def _settings(
    count: int, seed: int, max_new_tokens: int, temperature: float, top_p: float, batch_size: int
) -> dict[str, int | float]:
    """Check the settings of a file, and return them as its header has them."""
    for name, value in (("count", count), ("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise LoraDropError(f"{name} must be at least 1, got {value}.")
    if not 0 <= seed < 2**63:
        raise LoraDropError(f"seed must lie between 0 and 2^63 - 1, got {seed}.")
    if not 0 <= temperature <= 10:  # also refuses NaN
        raise LoraDropError(f"temperature must lie between 0 and 10, got {temperature}.")
    if not 0 < top_p <= 1:
        raise LoraDropError(f"top_p must lie above 0 and at most at 1, got {top_p}.")
    return {
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "temperature": float(temperature),
        "top_p": float(top_p),
        "batch_size": batch_size,
    }


# ---- replies --------------------------------------------------------------------------------------------------------


def generate_batch(
    loaded: LoadedModel,
    prompts: list[list[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[list[int]]:
    """Run transformers' `generate` on a batch; return the new tokens of each prompt, with the end token if reached.

    Args:
        prompts: token ids, of any lengths.
        temperature: 0 is greedy.
        seed: of torch's generators, which are restored afterwards.

    Raises:
        LoraDropError: the batch does not fit into the device's memory.
    """
    longest = max(map(len, prompts))
    stops = sorted(loaded.stop_ids)
    pad = stops[0] if stops else 0  # any token will do: it is masked on the left and cut off on the right
    # Padding on the left, so that new tokens follow the prompt's last one. `generate` counts positions by the mask.
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=loaded.device)  # (B, longest)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=loaded.device)
    sampling = {"temperature": float(temperature), "top_p": float(top_p)} if temperature else {}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=bool(temperature),
        **sampling,
        eos_token_id=stops or None,
        pad_token_id=pad,
        # Some models set these in their generation config; the text must be what the decode engine would sample.
        top_k=0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
    )
    model: Any = loaded.model  # Any: PreTrainedModel's type has no `generate`
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        try:
            out = model.generate(ids, attention_mask=mask, generation_config=config)  # (B, longest + new)
        except torch.OutOfMemoryError as error:
            raise LoraDropError(
                f"a batch of {len(prompts)} does not fit into the memory of {loaded.device}: lower batch_size."
            ) from error
    return [_to_end(row, loaded.stop_ids) for row in out[:, longest:].tolist()]


def _to_end(ids: list[int], stop_ids: frozenset[int]) -> list[int]:
    """Cut ids after the first end token; the rest is padding."""
    end = next((at for at, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[: end + 1]


def _batch_seed(seed: int, batch: int) -> int:
    """Seed of a batch, 63 bits; neighbouring seeds and batches share nothing."""
    return int.from_bytes(hashlib.sha256(f"{seed} batch {batch}".encode()).digest()[:8], "little") >> 1
