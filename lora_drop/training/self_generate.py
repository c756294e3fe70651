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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from lora_drop.errors import LoraDropError, one_line
from lora_drop.models.load import LoadedModel
from lora_drop.models.tokens import encode_prompt
from lora_drop.training.prompts import seed_prompts

FORMAT, VERSION = "lora-drop-self-generated", 1

# ---- the file -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """How replies are sampled; a file goes on only with the same values, which its header has.

    Args:
        seed: of the prompts' order and of the replies.
        max_new_tokens: most tokens of a reply, with its end token.
        temperature: 0 is greedy.
        top_p: the share of probability that is drawn from.
        batch_size: replies that are sampled together; the text depends on it. On a CPU 64 is no faster than 32, and a
            kill costs at most one batch.
    """

    seed: int = 0
    max_new_tokens: int = 256
    temperature: float = 0.8
    top_p: float = 0.95
    batch_size: int = 32


USUAL = Sampling()


def self_generate(
    loaded: LoadedModel,
    count: int,
    path: Path,
    sampling: Sampling = USUAL,
    progress: Callable[[float, int], None] = lambda done, tokens: None,
) -> int:
    """Answer `count` seed prompts with the full model and append each to `path` as a line, batch by batch.

    A line is `{"prompt": ..., "text": the reply, "token_ids": [prompt, reply, end token if it was reached]}`. An
    existing file continues after its last whole record; one with `count` records or more is not changed. Only one
    process may write a file at a time.

    Args:
        loaded: from `load_model`; the text depends on its number type and kind of device too, so the file names them.
        count: records of the finished file. A higher count extends an existing file.
        progress: called with (records in the file, reply tokens written by this call), first before any work;
            within a batch the records have a fraction, as if each reply were as long as one may be.

    Returns:
        Records in the file.

    Raises:
        LoraDropError: the file is of another model or of other settings, there is no room for it, or a reply could
            exceed the model's context. Records written before stay.
    """
    if count < 1:
        raise LoraDropError(f"count must be at least 1, got {count}.")
    header: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "model": loaded.id,
        "revision": loaded.revision,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": loaded.device.type,
    } | asdict(sampling)
    content = _read(path) if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]  # a kill may have cut the last line short
    done = _records_there(path, content, whole, header, loaded)
    if whole == content and done >= count:
        progress(done, 0)
        return done
    prompts = seed_prompts(count, sampling.seed)
    encoded = [encode_prompt(loaded.tokenizer, prompt) for prompt in prompts]
    if (longest := max(map(len, encoded)) + sampling.max_new_tokens) > loaded.context:
        raise LoraDropError(
            f"the longest prompt and a reply of {sampling.max_new_tokens} tokens are {longest}, more than the model's "
            f"context of {loaded.context}: train on --data alone, or take another model."
        )

    def within(done: int, tokens: int, each: float) -> Callable[[int], None]:
        return lambda length: progress(done + length * each, tokens)

    # Written before the first reply, so that a bad path is an error at once. A line cut short goes only now.
    _append(path, [] if whole else [_line(header)], len(whole), done)
    tokens, size = 0, sampling.batch_size
    progress(done, tokens)
    for start in range(done - done % size, count, size):
        batch = encoded[start : start + size]
        each = (start + len(batch) - done) / (sampling.max_new_tokens + 1)  # records of the batch, a token
        replies = generate_batch(loaded, batch, sampling, start // size, within(done, tokens, each))
        lines = []
        for n in range(done, start + len(batch)):  # a batch may be there in part
            reply = replies[n - start]
            text = loaded.tokenizer.decode(reply, skip_special_tokens=True)
            lines.append(_line({"prompt": prompts[n], "text": text, "token_ids": encoded[n] + reply}))
            tokens += len(reply)
        _append(path, lines, None, done)
        done += len(lines)
        progress(done, tokens)
    return done


def _records_there(path: Path, content: bytes, whole: bytes, header: dict[str, Any], loaded: LoadedModel) -> int:
    """Count the records of a file that can be continued.

    Raises:
        LoraDropError: it is a file of another kind, of another model or of other settings.
    """
    if not whole:
        if not _line(header).startswith(content):
            raise LoraDropError(f"{path.name} holds something else than self-generated text: name another file.")
        return 0
    saved, records = _parse(path, content, loaded)
    if saved.get("revision") != header["revision"]:
        raise LoraDropError(_other_model(path, saved, loaded) + " Name another file.")
    for name, value in header.items():
        if name != "model" and saved.get(name) != value:  # one model may have two names
            raise LoraDropError(
                f"{path.name} was written with {name} {saved.get(name)}, this run has {value}: use the same settings, "
                "or name another file."
            )
    for n, prompt in enumerate(seed_prompts(len(records), header["seed"])):
        if records[n]["prompt"] != prompt:
            raise LoraDropError(
                f"line {n + 2} of {path.name} does not answer the prompt that belongs there, so it cannot go on: "
                "name another file."
            )
    return len(records)


class Text(list[int]):
    """Token ids of a text, with the number of them that are the prompt of a reply; 0 if it is no reply."""

    def __init__(self, ids: Sequence[int], prompt_tokens: int = 0):
        super().__init__(ids)
        self.prompt_tokens = prompt_tokens


def read_self_generated(path: Path, loaded: LoadedModel, limit: int | None = None) -> list[Text]:
    """Read each record, or the first `limit`; a last line that a kill cut short is left out.

    Raises:
        LoraDropError: the file is missing, of another model, or not self-generated text.
    """
    header, records = _parse(path, _read(path), loaded)
    if header.get("revision") != loaded.revision:
        raise LoraDropError(_other_model(path, header, loaded))
    if not records:
        raise LoraDropError(f"{path.name} has no record yet.")
    return [
        Text(record["token_ids"], len(encode_prompt(loaded.tokenizer, record["prompt"]))) for record in records[:limit]
    ]


def read_replies(path: Path, loaded: LoadedModel) -> list[tuple[Tensor, int]]:
    """Token ids (1, T) of each record with a reply of two tokens or more, and how many of them are its prompt.

    Raises:
        LoraDropError: as `read_self_generated`.
    """
    texts = read_self_generated(path, loaded)
    return [(torch.tensor([text]), text.prompt_tokens) for text in texts if len(text) > text.prompt_tokens + 1]


def is_self_generated(content: str) -> bool:
    """True if a file's content begins with the header of self-generated text."""
    return content.startswith(f'{{"format": "{FORMAT}"')


def _line(record: dict[str, Any]) -> bytes:
    """A record as ASCII, so that no reader takes a character inside it for the end of a line."""
    return json.dumps(record).encode("ascii") + b"\n"


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # reading a device may never end
        raise LoraDropError(f"{path.name} is not a file.")
    with one_line(f"cannot read {path.name}"):
        return path.read_bytes()


def _append(path: Path, lines: list[bytes], size: int | None, done: int) -> None:
    """Append lines, after cutting the file to `size` bytes unless that is None.

    Raises:
        LoraDropError: the file cannot be written; its `done` records stay.
    """
    try:
        with path.open("ab", buffering=0) as file:  # unbuffered: all is in the file, or the error is raised here
            if size is not None:
                file.truncate(size)
            rest = memoryview(b"".join(lines))
            while rest:
                rest = rest[file.write(rest) :]
    except OSError as error:
        advice = f" The {done} records before it are kept: make room and start again." if done else ""
        raise LoraDropError(f"cannot write {path.name}: {error.strerror or error}.{advice}") from None


def _parse(path: Path, content: bytes, loaded: LoadedModel) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and records of the whole lines of a file. Raises LoraDropError with the first invalid line."""
    values: list[Any] = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise LoraDropError(f"line {number} of {path.name} is not JSON: {error}.") from None
    header, *records = values or [None]
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise LoraDropError(f"{path.name} holds something else than self-generated text: its first line is no header.")
    if header.get("version") != VERSION:
        raise LoraDropError(
            f"{path.name} has version {header.get('version')!r} of the format, this program knows {VERSION}."
        )
    vocabulary = loaded.model.config.vocab_size
    for number, record in enumerate(records, start=2):
        ids = record.get("token_ids") if isinstance(record, dict) else None
        if not (isinstance(ids, list) and ids and isinstance(record.get("prompt"), str)):
            raise LoraDropError(f"line {number} of {path.name} is no record with a prompt and token_ids.")
        # Not isinstance: True is an int there.
        if wrong := [n for n in ids if type(n) is not int or not 0 <= n < vocabulary]:
            raise LoraDropError(
                f"line {number} of {path.name} has the token id {str(wrong[0])[:40]}, the model's are 0 to "
                f"{vocabulary - 1}."
            )
    return header, records


def _other_model(path: Path, header: dict[str, Any], loaded: LoadedModel) -> str:
    return (
        f"{path.name} was written by another model: {header.get('model')} ({header.get('revision')}), this is "
        f"{loaded.id} ({loaded.revision})."
    )


# ---- replies --------------------------------------------------------------------------------------------------------


def generate_batch(
    loaded: LoadedModel,
    prompts: list[list[int]],
    sampling: Sampling,
    number: int = 0,
    after_token: Callable[[int], None] = lambda length: None,
) -> list[list[int]]:
    """Run transformers' `generate` on a batch; return the new tokens of each prompt, with the end token if reached.

    Args:
        prompts: token ids, of any lengths.
        number: the batch's; it draws from (seed, number). torch's generators are restored afterwards.
        after_token: called with the tokens that the longest reply has so far.

    Raises:
        LoraDropError: the batch does not fit into the device's memory.
    """
    longest = max(map(len, prompts))
    stops = sorted(loaded.stop_ids)
    pad = stops[0] if stops else 0  # any token will do: it is masked on the left and cut off on the right
    # Padding on the left, so that new tokens follow the prompt's last one. `generate` counts positions by the mask.
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=loaded.device)  # (B, longest)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=loaded.device)
    drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p} if sampling.temperature else {}
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=bool(drawn),
        **drawn,
        eos_token_id=stops or None,
        pad_token_id=pad,
        # Some models set these in their generation config; the text must be what the decode engine would sample.
        top_k=0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
    )
    model: Any = loaded.model  # Any: PreTrainedModel's type has no `generate`

    def criterion(ids: Tensor, scores: Any, **more: Any) -> bool:
        after_token(ids.shape[1] - longest)
        return False

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(_batch_seed(sampling.seed, number))
        try:
            # (B, longest + new)
            out = model.generate(ids, attention_mask=mask, generation_config=config, stopping_criteria=[criterion])
        except torch.OutOfMemoryError as error:
            raise LoraDropError(
                f"a batch of {len(prompts)} replies does not fit into the memory of {loaded.device}: take another "
                "--device, or --dtype bfloat16."
            ) from error
    return [_to_end(row, loaded.stop_ids) for row in out[:, longest:].tolist()]


def _to_end(ids: list[int], stop_ids: frozenset[int]) -> list[int]:
    """Cut ids after the first end token; the rest is padding."""
    end = next((at for at, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[: end + 1]


def _batch_seed(seed: int, batch: int) -> int:
    """Seed of a batch, 63 bits; neighbouring seeds and batches share nothing."""
    return int.from_bytes(hashlib.sha256(f"{seed} batch {batch}".encode()).digest()[:8], "little") >> 1
