"""One training run: distil the full model into LoRA-Drop decoding.

The backbone is frozen. The student runs the real schedule in one parallel pass (`student`; `exact` for exact
refreshes), the teacher is the same model with every layer, and the loss is KL(full || student) over the vocabulary
(`distill`). Each batch draws a period, skipped layers and a prompt length, so that one bank serves many
schedules. Training starts from a regression (`fit`) and continues with AdamW, in units from that regression (`parts`).

All random draws follow from (seed, step), so a run resumes exactly from the parameters, the scales, the optimizer and
the number of the step. `accelerate launch -m lora_drop.training ...` spreads the batches over processes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from lora_drop.adapters.bank import AdapterBank
from lora_drop.adapters.card import dropped_in
from lora_drop.errors import LoraDropError, one_line
from lora_drop.method.config import LoraDropConfig
from lora_drop.models.load import LoadedModel
from lora_drop.paths import write_files
from lora_drop.run.results.bank_presets import presets_of
from lora_drop.training.checkpoint import read_state, write_checkpoint
from lora_drop.training.distill import Text, distillation, evaluated_cases, figures
from lora_drop.training.draw import ANY_RATIO, PERIODS, RATIOS, Draw, draw
from lora_drop.training.fit import Batch, Scales, fit, measure
from lora_drop.training.parts import bank_of, continued, parameters_of, screened_head
from lora_drop.training.picture import PICTURE, loss_picture
from lora_drop.training.settings import TrainJob, TrainSettings, reproduce, run_settings
from lora_drop.training.student import Layout

Progress = Callable[[float, int, str], None]  # what is done, all there is to do, and words
LOG = "train_log.jsonl"
HELD_OUT = 0.02  # share of the windows that is not trained on
EVALUATED = 8  # windows of each evaluation
FORMER = {"kv": "skip", "refresh": "single", "head_rank": 0}  # defaults when checkpoints did not name these settings


def _reported(batches: list[Batch], progress: Progress) -> Iterator[Batch]:
    for done, batch in enumerate(batches):
        progress(done, len(batches), "")
        yield batch
    progress(len(batches), len(batches), "")


class Trainer:
    """One training run of a loaded model: `prepare` or `resume`, then `run`, which writes an adapter folder.

    Args:
        job: its folder `out` exists; the text's files are for the adapter's card.
        windows: (N, length) tokens, from `to_rows`.
        counted: (N, length) bool, the tokens that the loss counts; None counts all.
        held_out: texts of an evaluation; None holds out some of the windows.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        settings: TrainSettings,
        job: TrainJob,
        windows: Tensor,
        counted: Tensor | None = None,
        held_out: list[Text] | None = None,
    ):
        self.loaded, self.settings, self.job, self.out = loaded, settings, job, job.out
        self.presets = presets_of(loaded)  # read before the first step: a checkpoint must not fail for them
        self.accelerator = Accelerator(log_with=job.report_to, project_dir=str(job.out))
        self.windows, self.counted = windows, torch.ones_like(windows).bool() if counted is None else counted
        self.held_out = held_out or self._apart()
        draw(settings, 0, len(self.windows), loaded.num_layers)  # refuses a ratio that skips nothing
        for parameter in loaded.model.parameters():
            parameter.requires_grad_(False)
        self.start = self._new_bank()
        size = loaded.shape.hidden_size
        plain = Scales(torch.eye(size, device=loaded.device), torch.ones(size, device=loaded.device))
        self.scales = dict.fromkeys(self.start.layers, plain)
        self.fit_tokens = 0
        self.parameters: list[Tensor] = []
        self.step = 0
        self._optimize()

    def _apart(self) -> list[Text]:
        """Move some windows from the training text to evaluations."""
        windows = self.windows
        count = max(1, min(EVALUATED, int(len(windows) * HELD_OUT)))
        apart = torch.zeros(len(windows), dtype=torch.bool)
        apart[len(windows) // count // 2 :: -(-len(windows) // count)] = True  # from all over the text
        if apart.all():
            raise LoraDropError("the training text has one window; it needs at least two, for one is held out.")
        self.windows, self.counted = windows[~apart], self.counted[~apart]
        # One at a time: together they would take more memory than a batch.
        return [(row, self.settings.length // 4) for row in windows[apart].split(1)]

    def _optimize(self) -> None:
        """Make parameters from the starting bank, in the units of its scales, and their optimizer."""
        self.parameters = parameters_of(self.start, self.scales)
        self.optimizer = torch.optim.AdamW(self.parameters, self.settings.learning_rate, weight_decay=0.0)

    @property
    def bank(self) -> AdapterBank:
        """Bank of the current parameters; gradients of its tensors reach them."""
        return bank_of(self.parameters, self.start, self.scales)

    def prepare(self, progress: Progress = lambda done, total, words: None) -> None:
        """Before the first step, fit the starting bank and its units by a regression over `fit_batches` batches.

        Only the units are used if there is a bank to start from, or if the regression is worse than B = 0: its errors
        add up from layer to layer, and with `state` from step to step.

        Args:
            progress: called before each batch of the regression with their number so far, their total and a text.

        Raises:
            LoraDropError: the bank to start from cannot be read, or is of another model, rule, rank or set of layers.
        """
        start = self.job.start
        trained = None if start is None else continued(self.start, AdapterBank.load(start), start.name, self.loaded)
        batches = []
        for step in range(self.settings.fit_batches):
            batch = draw(self.settings, step, len(self.windows), self.loaded.num_layers)
            tokens = self.windows[batch.windows].to(self.loaded.device)
            layout = Layout.of(batch.prompt_tokens, tokens.shape[1], batch.schedule.period, tokens.device)
            batches.append((tokens, layout))
        if batches and trained is not None:
            self.scales = measure(self.loaded.model, self.start, _reported(batches, progress))
        elif batches:
            b, gate = ({i: t.clone() for i, t in store.items()} for store in (self.start.b, self.start.gate))
            plain = dataclasses.replace(self.start, b=b, gate=gate)  # with B = 0 any A will do
            self.scales = fit(self.loaded.model, self.start, _reported(batches, progress))
            if self._first_loss(self.start) >= self._first_loss(plain):
                self.start = plain
        self.fit_tokens = sum(tokens.numel() for tokens, _ in batches)
        if trained is not None:
            self.start = trained
        self._optimize()

    @torch.no_grad()
    def _first_loss(self, bank: AdapterBank) -> float:
        """Loss of a bank on the first batch."""
        batch = draw(self.settings, 0, len(self.windows), self.loaded.num_layers)
        return float(self._distillation(batch, bank)[0])

    def _distillation(self, batch: Draw, bank: AdapterBank) -> tuple[Tensor, Tensor]:
        """Loss and agreement of a batch, computed up to its last counted token."""
        tokens, counted = self.windows[batch.windows], self.counted[batch.windows]
        first, *_, last = counted.any(0).nonzero()[:, 0].tolist()
        prompt = batch.prompt_tokens
        if self.settings.exact:  # nothing outlasts a refresh, so LoRA steps may begin anywhere
            prompt = min(prompt + first, last)
        elif replies := int(counted.int().argmax(1).max()):  # no text's prompt may have LoRA steps
            prompt = replies
        tokens, counted = (t[:, : last + 1].to(self.loaded.device) for t in (tokens, counted))
        with self._autocast():
            return distillation(self.loaded, tokens, counted, prompt, batch.schedule, bank, self.settings.loss)

    def _new_bank(self) -> AdapterBank:
        settings, loaded = self.settings, self.loaded
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            layers, size = settings.corrected(loaded.num_layers), loaded.shape.hidden_size
            bank = AdapterBank.new(layers, size, settings.rank, settings.alpha, **settings.rules)
        for gate in bank.gate.values():
            gate.fill_(settings.gate)
        bank = bank.to(loaded.device, torch.float32)
        bank.base_model, bank.revision, bank.num_layers = loaded.id, loaded.revision, loaded.num_layers
        bank.sketch = loaded.sketch
        return bank

    def _autocast(self) -> torch.autocast:
        """Autocast to bfloat16 if the backbone has it; the parameters are float32.

        accelerate's autocast has one number type for the whole process, in which two runs may differ.
        """
        return torch.autocast(self.loaded.device.type, torch.bfloat16, enabled=self.loaded.dtype == torch.bfloat16)

    @property
    def tokens_per_step(self) -> int:
        """Tokens that all processes together read in a step."""
        settings = self.settings
        processes: int = self.accelerator.num_processes
        return settings.batch_size * settings.length * settings.accumulate * processes

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return math.ceil(self.settings.max_tokens / self.tokens_per_step)

    def learning_rate(self, step: int) -> float:
        """Rate of a step: linear warm-up, then a cosine to zero; with `decay` constant, then linear to zero."""
        warmup = max(1, round(self.settings.warmup * self.steps))
        if step < warmup:
            return self.settings.learning_rate * (step + 1) / warmup
        if self.settings.decay is not None:
            falling = max(1, round(self.settings.decay * self.steps))
            return self.settings.learning_rate * min(1, (self.steps - step) / falling)
        progress = (step - warmup) / max(1, self.steps - warmup)
        return self.settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    def train_step(self) -> tuple[float, float]:
        """Make one step; return the mean loss and agreement of its batches, those of all processes.

        Raises:
            LoraDropError: loss or gradient is NaN or infinite; the parameters are unchanged.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        means = self._gradients()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return means

    def probe(self) -> float:
        """Measure tokens per second, of all processes, in a step like the next one, whose result is discarded.

        Raises:
            LoraDropError: as in `train_step`.
        """
        started = time.monotonic()
        self._gradients()
        self.optimizer.zero_grad(set_to_none=True)
        return self.tokens_per_step / max(time.monotonic() - started, 1e-9)

    def _gradients(self) -> tuple[float, float]:
        """Compute the gradients of the next step; return the mean loss and agreement of its batches."""
        settings, share = self.settings, self.accelerator.num_processes
        loss = agreement = torch.zeros((), device=self.loaded.device)
        for turn in range(settings.accumulate):
            place = (self.step * settings.accumulate + turn) * share + self.accelerator.process_index
            batch = draw(settings, place, len(self.windows), self.loaded.num_layers)
            batch_loss, agreeing = self._distillation(batch, self.bank)
            self.accelerator.backward(batch_loss / settings.accumulate)
            loss = loss + batch_loss.detach() / settings.accumulate
            agreement = agreement + agreeing / settings.accumulate
        for tensor in self.parameters:
            # A layer that no batch skips has no gradient; zero makes it the same on every process.
            tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            if share > 1:
                tensor.grad = self.accelerator.reduce(tensor.grad, "mean")
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        means = torch.stack((loss, agreement, norm))  # the norm is the same on every process
        mean, agreed, length = (self.accelerator.reduce(means, "mean") if share > 1 else means).tolist()
        if not math.isfinite(mean + length):
            raise LoraDropError(
                f"the loss of batch {self.step + 1} is {mean}, its gradient {length}: the model or the adapters "
                "overflow. Checkpoints are kept; take a lower --learning-rate, or --dtype float32."
            )
        return mean, agreed

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Figures of the current bank on the held-out text; see `distill.figures`."""
        texts = [(tokens.to(self.loaded.device), prompt) for tokens, prompt in self.held_out]
        rows = []
        for case in evaluated_cases(self.settings):
            schedule = LoraDropConfig(**self.settings.rules, **case).schedule_for(self.loaded.num_layers)
            with self._autocast():
                rows.append(case | figures(self.loaded, texts, schedule, self.bank))
        return {"tokens": sum(tokens.numel() for tokens, _ in texts), "schedules": rows}

    def run(
        self, evaluate_every: int, checkpoint_every: int, progress: Progress = lambda done, total, words: None
    ) -> dict[str, Any]:
        """Train to the end; return the last evaluation.

        Args:
            evaluate_every: in steps, and at the end too.
            checkpoint_every: in steps, and at the end too.
            progress: called with the steps so far, all of them, and the last one's figures in words.
        """
        main, evaluation = self.accelerator.is_main_process, None
        settings = dataclasses.asdict(self.settings)
        self.accelerator.init_trackers("lora-drop", {name: settings[name] for name in settings if settings[name]})
        progress(self.step, self.steps, "")
        if self.step == 0:  # before training
            evaluation = self.evaluate()
            if main:
                self._log({"step": 0, "tokens": 0, "evaluation": evaluation})
                self.save(evaluation)  # the regression may have taken an hour
        while self.step < self.steps:
            started = time.monotonic()
            loss, agreement = self.train_step()
            rate = self.tokens_per_step / max(time.monotonic() - started, 1e-9)
            words = f"loss {loss:.3f}, agreement {agreement:.3f}, {rate:.0f} tokens/s"
            progress(self.step, self.steps, words)
            last = self.step == self.steps
            entry: dict[str, Any] = {"step": self.step, "tokens": self.step * self.tokens_per_step, "loss": loss}
            entry["agreement"] = agreement
            if last or self.step % evaluate_every == 0:
                evaluation = entry["evaluation"] = self.evaluate()
            if main:
                self._log(entry)
                if last and self.settings.head_rank:
                    self.start.head = screened_head(
                        self.loaded, self.windows, self.settings.head_rank, self.settings.head_best
                    )
                if last or self.step % checkpoint_every == 0:
                    self.save(evaluation)
                    with one_line(f"cannot write {PICTURE}"):
                        write_files({self.out / PICTURE: loss_picture((self.out / LOG).read_text(encoding="utf-8"))})
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return evaluation or self.evaluate()

    def _log(self, entry: dict[str, Any]) -> None:
        rows = entry.get("evaluation", {}).get("schedules", ())
        figures: dict[str, float] = {name: entry[name] for name in ("loss", "agreement") if name in entry}
        figures |= {f"kl, period {row['period']}, {dropped_in(row)}": row["kl"] for row in rows}
        self.accelerator.log(figures, step=entry["step"])
        try:
            with (self.out / LOG).open("a", encoding="utf-8") as log:
                log.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise LoraDropError(
                f"cannot write {LOG} ({error.strerror or error}): make room, then --resume from the last checkpoint."
            ) from None

    def save(self, evaluation: dict[str, Any] | None) -> None:
        """Write a checkpoint.

        Raises:
            LoraDropError: it cannot be written; the last good one stays.
        """
        state = {
            "step": self.step,
            "settings": dataclasses.asdict(self.settings),
            "processes": self.accelerator.num_processes,
            "revision": self.loaded.revision,
            "text": self._text(),
            "parameters": [tensor.detach() for tensor in self.parameters],
            "scales": {i: (scale.white, scale.reach) for i, scale in self.scales.items()},
            "fit_tokens": self.fit_tokens,
            "optimizer": self.optimizer.state_dict(),
        }
        write_checkpoint(self.out, self._finished(evaluation), state)

    def _text(self) -> str:
        """Hash of the training text and of its counted tokens."""
        digest = hashlib.sha256(self.windows.numpy().tobytes())
        digest.update(self.counted.numpy().tobytes())
        return digest.hexdigest()

    def _finished(self, evaluation: dict[str, Any] | None) -> AdapterBank:
        """Bank for its folder: in bfloat16, with its settings, text and quality."""
        current, settings = self.bank, self.settings
        tensors = current.mapped(lambda t: t.detach().cpu().to(torch.bfloat16))
        any_ratio = [*RATIOS, f"{ANY_RATIO[0]} to {ANY_RATIO[1]}"]
        drawn = sorted(set(PERIODS))
        schedules = {
            "refresh": settings.refresh,
            "periods": [settings.period] if settings.period else drawn,
            **({"drop_order": list(settings.order)} if settings.order else {}),
            **({"drop_count": settings.drop_count} if settings.drop_count else {}),
            "drop_ratios": any_ratio if settings.drop_ratio is None else [settings.drop_ratio],
        }
        job = self.job
        sources = [path.name for path in job.data]
        sources += [f"{job.self_generate} texts that the model wrote itself"] if job.self_generate else []
        sources += [f"before that, the text of {job.start.name}"] if job.start else []
        meta = {
            "trained_schedules": schedules,
            "data": sources,
            "command": reproduce(settings, job, self.loaded.id),
            "tokens": self.step * self.tokens_per_step,
            "fit_tokens": self.fit_tokens,
            "settings": dataclasses.asdict(settings),
            "run_settings": run_settings(settings, self.loaded.num_layers, self.presets),
            "quality": evaluation,
        }
        return dataclasses.replace(current, **tensors, meta=meta)

    def resume(self) -> None:
        """Continue exactly from the last checkpoint.

        Raises:
            LoraDropError: there is none, or it is of other settings, another text or another model.
        """
        state = read_state(self.out, self.loaded.device)
        try:
            self._restore(state)
        except LoraDropError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError):
            raise LoraDropError(
                f"the checkpoint in {self.out.name} is none of train's: start without --resume, in another --out."
            ) from None

    def _restore(self, state: dict[str, Any]) -> None:
        if state["revision"] != self.loaded.revision:
            raise LoraDropError(f"the checkpoint in {self.out.name} is of another model.")
        mine = dataclasses.asdict(self.settings)
        # An older checkpoint lacks newer settings.
        its = dataclasses.asdict(TrainSettings()) | FORMER | state["settings"]
        constant = None not in (mine["decay"], its.get("decay"))  # then the steps so far do not depend on the end
        free = ("max_tokens", "decay") if constant else ()
        if differs := [name for name, value in its.items() if mine.get(name) != value and name not in free]:
            name = differs[0]
            raise LoraDropError(
                f"the checkpoint in {self.out.name} was made with {name} {its[name]}, this run has "
                f"{mine[name]}: use the same settings, or another --out."
            )
        count = self.accelerator.num_processes
        if (its_count := state.get("processes", count)) != count:  # each draws other batches
            raise LoraDropError(
                f"the checkpoint in {self.out.name} was made by {its_count} processes, this launch has {count}: start "
                "as many."
            )
        if state["text"] != self._text():
            raise LoraDropError(
                f"the checkpoint in {self.out.name} was trained on another text: give the same files, in the same "
                "order, or --start from its adapter folder in another --out."
            )
        with torch.no_grad():
            for tensor, saved in zip(self.parameters, state["parameters"], strict=True):
                tensor.copy_(saved)
        self.scales = {i: Scales(*tensors) for i, tensors in state["scales"].items()}
        self.fit_tokens = int(state["fit_tokens"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])
