r"""LoRA-Drop as a model of EleutherAI's lm-evaluation-harness.

    python -m lora_drop.evaluation.tasks.model run --model lora_drop --model_args pretrained=bundled,period=4 \
        --tasks hellaswag

registers the model and calls lm-eval's command line, which up to 0.4.13 finds no models outside itself (later ones
read the entry point in pyproject.toml); all options are lm-eval's. `--model_args` takes `pretrained` (`--model`
elsewhere), `device`, `dtype`, `preset` and LoRA-Drop's settings by the names of the command line with underscores.
Commas separate the arguments, so `drop_layers` has colons: `drop_layers=4:6:8`.

A log-likelihood is decoded: prefill on the context, then a step a token of the continuation, with layers skipped as
in generation. One forward pass over both, the usual way, would measure the full model.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from lora_drop.adapters.bank import AdapterBank
from lora_drop.adapters.find import find_bank
from lora_drop.decode.lane import Lane
from lora_drop.decode.logits import log_probs, nll
from lora_drop.decode.reference import Decoder
from lora_drop.decode.sampling import Sampling
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.metrics import decode_target, read_target
from lora_drop.method.fields import CALL, SCHEDULE
from lora_drop.method.presets import config_from
from lora_drop.method.schedule import Schedule
from lora_drop.method.settings import settings_of
from lora_drop.models.load import LoadedModel, load_model
from lora_drop.models.tokens import ByteTokenizer, Detokenizer, encode_prompt
from lora_drop.run.results.bank_presets import presets_of

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    missing = LoraDropError(
        f"lm-eval, the extra `benchmark`, cannot be imported ({error}): pip install 'lm-eval>=0.4.13,<0.5'"
    )
    if __name__ != "__main__":
        raise missing from None
    print(f"lora-drop: {missing}", file=sys.stderr)
    sys.exit(2)

LM_EVAL_DEVICE = "cuda:0"  # what lm-eval passes where its user names none
SETTINGS = ("preset", *(setting.name for setting in settings_of(SCHEDULE)))


class LaneLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """A decoder with a schedule, as a model of lm-eval: one text at a time, as the decoder has no batches."""

    def __init__(self, loaded: LoadedModel, decoder: Decoder, schedule: Schedule, bank: AdapterBank | None):
        super().__init__()
        self.loaded, self.decoder, self.schedule, self.bank = loaded, decoder, schedule, bank
        self.tokenizer = loaded.tokenizer
        self.max_length, self.max_gen_toks = loaded.context, 256

    @property
    def eot_token_id(self) -> int:
        """The end token."""
        token: int = self.tokenizer.eos_token_id
        return token

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context."""
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else start

    @property
    def tokenizer_name(self) -> str:
        """The model, in lm-eval's cache of requests."""
        return self.loaded.id.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render messages, for `--apply_chat_template`."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The tokens of a text, with the tokenizer's start token unless the text begins with it."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode([self.prefix_token_id]))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, true if it is the greedy text) of each (key, context, continuation) of tokens.

        A context too long loses its start, as in lm-eval's models.
        """
        answers = []
        for key, context, continuation in tqdm(requests, disable=disable_tqdm, desc="Decoding loglikelihood requests"):
            room = self.max_length + 1 - len(continuation)  # the last token is scored, not read
            if room < 1:
                raise LoraDropError(
                    f"a continuation of {len(continuation)} tokens does not fit into a context of {self.max_length}."
                )
            if self.schedule.is_baseline:
                logits = read_target(self.decoder, context[-room:], continuation)
            else:
                logits, _, _ = decode_target(self.decoder, self.schedule, self.bank, context[-room:], continuation)
            tokens = torch.tensor(continuation, device=logits.device)
            total = -float(nll(log_probs(logits), tokens).sum())
            answers.append((total, bool((logits.argmax(-1) == tokens).all())))
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answers[-1])
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, in windows of the context."""
        totals = []
        for request in tqdm(requests, disable=disable_tqdm, desc="Decoding loglikelihood_rolling requests"):
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            totals.append(sum(total for total, _ in self._loglikelihood_tokens(parts, disable_tqdm=True)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate texts, up to a stop token or before the first of a request's `until` texts.

        The generation argument `chat` is ours: true puts the context into the chat template as a user's message, false
        leaves it alone, and with either a marker in it is plain text.
        """
        texts = []
        for request in tqdm(requests, disable=disable_tqdm, desc="Running generate_until requests"):
            context, options = request.args
            arguments = dict(normalize_gen_kwargs(options, self.max_gen_toks))
            stop, max_new_tokens = [text for text in arguments.pop("until") if text], arguments.pop("max_gen_toks")
            sampled, chat = arguments.pop("do_sample"), arguments.pop("chat", None)
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
            ids = self.tok_encode(context) if chat is None else encode_prompt(self.tokenizer, context, chat)
            text = self.generate(ids[-room:], max_new_tokens, stop, sampling)
            texts.append(text)
            self.cache_hook.add_partial("generate_until", (context, options), text)
        return texts

    def generate(
        self, prompt_ids: list[int], max_new_tokens: int, stop: Sequence[str] = (), sampling: Sampling | None = None
    ) -> str:
        """Generate a text after a prompt, greedily without `sampling`.

        It ends after `max_new_tokens`, at a stop token of the model, or before the first of the `stop` texts, which
        may be special tokens: a decoded text leaves those out.
        """
        special = {} if isinstance(self.tokenizer, ByteTokenizer) else self.tokenizer.get_added_vocab()
        stop_ids = self.loaded.stop_ids | {special[text] for text in stop if text in special}
        ids = torch.tensor([prompt_ids], device=self.loaded.device)
        lane = Lane(self.decoder, ids, self.schedule, self.bank, sampling or Sampling(), max_new_tokens, stop_ids)
        detokenizer, text = Detokenizer(self.tokenizer), ""
        longest = max(map(len, stop), default=0)
        done = 0
        for _ in lane:
            for token in lane.tokens[done : lane.verified]:
                if token in stop_ids:
                    return text
                piece = detokenizer.add(token)
                start = max(0, len(text) - longest)
                text += piece
                if ends := [at for at in (text.find(end, start) for end in stop) if at >= 0]:
                    return text[: min(ends)]
            done = lane.verified
        return text


@register_model("lora_drop")
class LoraDropLM(LaneLM):
    """A model decoded with LoRA-Drop, by lm-eval's `--model_args`.

    Args:
        pretrained: `bundled`, a Hub id or a local folder.
        device: as on the command line; lm-eval's default, cuda:0, is `auto` without CUDA.
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
        # lm-eval reads "3" as a number.
        textual = {setting.name for setting in settings_of(CALL, SCHEDULE) if setting.kind.python is str}
        settings = {name: str(value) if name in textual else value for name, value in settings.items()}
        if "drop_layers" in settings:
            settings["drop_layers"] = settings["drop_layers"].replace(":", ",")
        config_from(settings, None)  # a mistake is reported before the model loads
        if device == LM_EVAL_DEVICE and not torch.cuda.is_available():
            device = "auto"
        loaded = load_model(pretrained, device, dtype)
        config = config_from(settings, presets_of(loaded, settings.get("adapters")))
        schedule = config.schedule_for(loaded.num_layers)
        bank, notes = find_bank(loaded, config, schedule)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        self.config_of_run = config
        super().__init__(loaded, loaded.new_decoder(), schedule, bank)

    def get_model_info(self) -> dict[str, Any]:
        """The model and LoRA-Drop's settings, which lm-eval writes beside its results."""
        return {
            "model_num_parameters": self.loaded.model.num_parameters(),
            "model_dtype": str(self.loaded.dtype),
            "model_revision": self.loaded.revision,
            "model_sha": "",
            "lora_drop": self.config_of_run.to_dict() | {"dropped": list(self.schedule.dropped)},
        }


def main() -> int:
    """Run lm-eval's command line with this model; returns the exit code."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except LoraDropError as error:
        print(f"lora-drop: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
