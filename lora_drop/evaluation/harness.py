"""LoRA-Drop as a model of EleutherAI's lm-evaluation-harness.

    python -m lora_drop.evaluation.harness --model lora_drop --model_args pretrained=bundled,period=4 --tasks hellaswag

registers the model and calls the harness's own command line, which up to 0.4.13 finds no models outside itself (later
ones read the entry point in pyproject.toml); all options are the harness's. `--model_args` takes `pretrained`
(`--model` elsewhere), `device`, `dtype`, `preset` and LoRA-Drop's settings by the names of the command line with
underscores. Commas separate the arguments, so `drop_layers` has colons: `drop_layers=4:6:8`.

A log-likelihood is decoded: prefill on the context, then a step a token of the continuation, with layers skipped as
in generation. The harness's own class makes one forward pass over both, which would measure the full model. The
harness is an extra of this package, and imported only here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from lora_drop.adapters.find import find_bank
from lora_drop.decode.sampling import Sampling
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.metrics import decode_target
from lora_drop.evaluation.tasks.runner import generate_text, log_likelihood
from lora_drop.method.fields import CALL, SCHEDULE
from lora_drop.method.presets import config_from
from lora_drop.method.settings import settings_of
from lora_drop.models.load import load_model
from lora_drop.models.tokens import ByteTokenizer

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import normalize_gen_kwargs
except ImportError as error:
    missing = LoraDropError(f"lm-evaluation-harness cannot be imported ({error}): pip install 'lm-eval>=0.4.13,<0.5'")
    if __name__ != "__main__":
        raise missing from None
    print(f"lora_drop: {missing}", file=sys.stderr)
    sys.exit(2)

HARNESS_DEVICE = "cuda:0"  # what the harness passes where its user names none
SETTINGS = ("preset", *(setting.name for setting in settings_of(SCHEDULE)))


@register_model("lora_drop")
class LoraDropLM(HFLM):  # type: ignore[misc]  # lm_eval may be missing
    """A model decoded with LoRA-Drop, one text at a time: the decoder has no batches.

    Args:
        pretrained: `bundled`, a Hub id or a local folder.
        device: as on the command line; the harness's own default, cuda:0, is `auto` without CUDA.
        dtype: as on the command line.
        batch_size: 1, or `auto`, which is 1.
        settings: of `SETTINGS`.

    Raises:
        LoraDropError: an unknown argument, or a model or settings that do not fit.
    """

    def __init__(
        self,
        pretrained: str = "bundled",
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **settings: Any,
    ):
        if unknown := sorted(settings.keys() - set(SETTINGS)):
            raise LoraDropError(
                f"there is no model argument {unknown[0]!r}; beside pretrained, device and dtype they are "
                f"{', '.join(SETTINGS)}."
            )
        if str(batch_size) not in ("1", "auto") or max_batch_size not in (None, 1):
            raise LoraDropError("LoRA-Drop decodes one text at a time: leave the batch size at 1.")
        # The harness reads "3" as a number.
        textual = {one.name for one in settings_of(CALL, SCHEDULE) if one.kind.python is str}
        settings = {name: str(value) if name in textual else value for name, value in settings.items()}
        if "drop_layers" in settings:
            settings["drop_layers"] = settings["drop_layers"].replace(":", ",")
        config = config_from(settings, pretrained)
        if device == HARNESS_DEVICE and not torch.cuda.is_available():
            device = "auto"
        self.loaded = load_model(pretrained, device, dtype)
        if isinstance(self.loaded.tokenizer, ByteTokenizer):
            raise LoraDropError(f"{pretrained} has no tokenizer that the harness can use: take a real model.")
        self.schedule = config.schedule_for(self.loaded.num_layers)
        self.bank, notes = find_bank(self.loaded, config, self.schedule)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        self.config_of_run = config
        self.decoder = self.loaded.new_decoder()
        super().__init__(
            pretrained=self.loaded.model,
            tokenizer=self.loaded.tokenizer,
            backend="causal",
            max_length=self.loaded.context,
            batch_size=1,
        )

    def get_model_info(self) -> dict[str, Any]:
        """The model and LoRA-Drop's settings, which the harness writes beside its results."""
        return {
            "model_num_parameters": self.loaded.model.num_parameters(),
            "model_dtype": str(self.loaded.dtype),
            "model_revision": self.loaded.revision,
            "model_sha": "",
            "lora_drop": self.config_of_run.to_dict() | {"dropped": list(self.schedule.dropped)},
        }

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, true if it is the greedy text) of each (key, context, continuation) of tokens.

        `loglikelihood` and `loglikelihood_rolling` both call this. A context too long loses its start, as in `HFLM`.
        """
        answers = []
        quiet = disable_tqdm or override_bs is not None  # a rolling request calls this for each window
        for key, context, continuation in tqdm(requests, disable=quiet, desc="Decoding loglikelihood requests"):
            room = self.max_length + 1 - len(continuation)  # the last token is scored, not read
            if room < 1:
                raise LoraDropError(
                    f"a continuation of {len(continuation)} tokens does not fit into a context of {self.max_length}."
                )
            logits, _, _ = decode_target(self.decoder, self.schedule, self.bank, context[-room:], continuation)
            tokens = torch.tensor(continuation, device=logits.device)
            answer = log_likelihood(logits, tokens), bool((logits.argmax(-1) == tokens).all())
            answers.append(answer)
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answer)
        return answers

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate texts, up to a stop token or before the first of a request's `until` texts."""
        texts = []
        for request in tqdm(requests, disable=disable_tqdm, desc="Running generate_until requests"):
            context, options = request.args
            arguments = dict(normalize_gen_kwargs(options, self.max_gen_toks))
            stop, max_new_tokens = [text for text in arguments.pop("until") if text], arguments.pop("max_gen_toks")
            sampled = arguments.pop("do_sample")
            sampling = Sampling(
                temperature=float(arguments.pop("temperature", 1.0)) if sampled else 0.0,
                top_p=float(arguments.pop("top_p", 1.0)),
            )
            arguments.pop("temperature", None)
            if arguments:
                raise LoraDropError(f"the generation argument {sorted(arguments)[0]!r} is not supported.")
            room = self.max_length - max_new_tokens
            if room < 1:
                raise LoraDropError(f"{max_new_tokens} new tokens fill the context of {self.max_length}.")
            ids = self.tok_encode(context, left_truncate_len=room)
            lane = self.loaded, self.decoder, self.schedule, self.bank
            text = generate_text(*lane, ids, max_new_tokens, stop, sampling, self._marks(stop))
            texts.append(text)
            self.cache_hook.add_partial("generate_until", (context, options), text)
        return texts

    def _marks(self, stop: Sequence[str]) -> frozenset[int]:
        """Ids of the stop texts that are special tokens: a decoded text leaves them out."""
        special = self.tokenizer.get_added_vocab()
        return frozenset(special[text] for text in stop if text in special)


def main() -> int:
    """Run the harness's own command line with this model; returns the exit code."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except LoraDropError as error:
        print(f"lora_drop: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
