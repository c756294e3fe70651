"""Does a learned trigger pay? A trial on the full model's own answers: `python -m scripts.trigger_trial FILE`.

FILE is text that the model wrote itself (`train --self-generate`, or `self_generate` for greedy replies): a small
network learns there how much a LoRA step loses. It is judged on the greedy answers to the held-out prompts. After an
exact full step a LoRA step depends on its place and on its gap (steps since that full step) alone; so one pass an
offset gives every LoRA step that any trigger comes to, and all are compared on one table, without decoding again.

A trigger gives each step a number, and a step whose number reaches a threshold is full. Each is compared at equal
shares of LoRA steps (by its threshold) with the fixed schedules of these shares and with the entropy:

- `entropy`, `norm`: of the step before, as `refresh_entropy` and `refresh_norm` have them;
- `learned, last step`: on entropy and norm of the step before, and the gap;
- `learned, state`: on that entropy, the gap, and the state before the first skipped layer, so that this very step may
  become full;
- `best there is`: the step's own loss, which no trigger knows.

With `--free` the preset then answers the held-out prompts itself, with its own schedule and with `learned, state`, and
the full model reads what stands. Its speed is arithmetic: a LoRA step costs `--lora` of a full step, and each row of a
repair after the first `--row`.

Shapes: n decode steps of a text, K gaps, D hidden size.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_drop.adapters.bank import AdapterBank
from lora_drop.adapters.find import find_bank
from lora_drop.decode.lane import Lane
from lora_drop.decode.logits import kl, log_probs
from lora_drop.decode.native.decoder import NativeDecoder
from lora_drop.decode.native.plan import NativeState
from lora_drop.decode.native.weights import NativeWeights
from lora_drop.decode.reference import first_skipped
from lora_drop.decode.sampling import Sampling
from lora_drop.decode.step import Decoder, DecoderOutput, DecodeState, StepResult, Verified
from lora_drop.evaluation.adaptive import NEVER, interpolate
from lora_drop.evaluation.measure.free import regrets
from lora_drop.evaluation.measure.metrics import read_target
from lora_drop.evaluation.measure.prompts import HELD_OUT
from lora_drop.evaluation.measure.texts import ANSWER_TOKENS, own_answers
from lora_drop.method.collapse import repeated_share
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.presets import preset_named
from lora_drop.method.schedule import Schedule
from lora_drop.models.load import LoadedModel, load_model
from lora_drop.training.exact import exact_states, read_full
from lora_drop.training.self_generate import read_replies

LONGEST = 6  # gap that is looked at
SHARES = {3: (0.5, 0.6), 4: (0.5, 0.6, 0.7), 6: (0.5, 0.6, 0.7)}  # longest gap -> shares of LoRA steps
THRESHOLDS = 40  # of each trigger, at the quantiles of what it gives
FREE = ((4, 0.5), (6, 0.5), (6, 0.65))  # longest gap; share of a table's LoRA steps below the threshold
HIDDEN, EPOCHS, BATCH, DRAWS = 32, 14, 1024, 300
ABSURD = math.log(10)  # a token that `accept` 0.1 takes back
LOSS, TAKEN, LORA, STEPS = range(4)  # columns of `played`

Scorer = Callable[["Table"], Tensor]


@dataclass
class Table:
    """The LoRA steps of one text at each gap; NaN where the prompt's end leaves none.

    Attributes:
        kl: (n, K) KL(full || LoRA-Drop).
        regret: (n, K) of LoRA-Drop's favourite under the full model.
        before: (n, K, 2) of the step before: entropy, and the corrections' norm (0 after a full step).
        entered: (n, D) the state before the first skipped layer.
    """

    kl: Tensor
    regret: Tensor
    before: Tensor
    entered: Tensor


@torch.inference_mode()
def table(
    loaded: LoadedModel, schedule: Schedule, bank: AdapterBank | None, prompt: list[int], answer: list[int]
) -> Table:
    """Of an answer of three tokens or more."""
    model, start, steps, period = loaded.model, len(prompt), len(answer) - 1, schedule.period
    head, tokens = model.get_output_embeddings(), torch.tensor([prompt + answer[:-1]])
    full = read_full(model, tokens, schedule)
    theirs = log_probs(head(full.states[0, start - 1 :]))
    shape = (steps, period - 1)
    own, before = torch.full((2, *shape), math.nan), torch.full((*shape, 2), math.nan)
    before[:, 0] = nn.functional.pad(_entropy(theirs[:-1])[:, None], (0, 1))
    for offset in range(min(period, steps)):
        norms: list[Tensor] = []
        states, _, lora = exact_states(
            *(model, tokens, start + offset, schedule, bank),
            lambda d, cached: norms.append(d[0].norm(dim=-1).float() / cached[0].norm(dim=-1).float()),  # noqa: B023
        )
        ours, at = log_probs(head(states[0])), lora.nonzero()[:, 0] - start
        gap, truth = (at - offset) % period, theirs[at + 1]
        own[0, at, gap] = kl(truth, ours)
        chosen = ours.argmax(-1, keepdim=True)
        own[1, at, gap] = truth.amax(-1) - truth.gather(-1, chosen)[:, 0]
        follows = (at < steps - 1) & (gap < period - 2)
        norm = torch.stack(norms).mean(0) if norms else torch.zeros(len(at))
        before[at[follows] + 1, gap[follows] + 1] = torch.stack((_entropy(ours), norm), -1)[follows]
    return Table(own[0], own[1], before, full.entered[0, start:].float())


def _entropy(logs: Tensor) -> Tensor:
    """(rows,) of log-probabilities (rows, V)."""
    return -(logs.exp() * logs).sum(-1)


# ---- triggers -------------------------------------------------------------------------------------------------------


def _inputs(one: Table, state: bool) -> Tensor:
    """What a learned trigger reads at each step and gap, (n, K, features)."""
    steps, gaps = one.kl.shape
    told = one.entered[:, None].expand(steps, gaps, -1) if state else one.before[..., 1:]
    return torch.cat((one.before[..., :1], torch.eye(gaps).expand(steps, gaps, gaps), told), -1).nan_to_num()


def learned(tables: Sequence[Table], state: bool) -> Scorer:
    """A network that expects a step's KL. Every sixth text says when to stop."""
    torch.manual_seed(0)
    there = [~one.kl.isnan() for one in tables]
    x = torch.cat([_inputs(one, state)[seen] for one, seen in zip(tables, there, strict=True)])
    y = torch.cat([one.kl[seen].clamp(max=8) for one, seen in zip(tables, there, strict=True)])
    apart = torch.cat([torch.full((int(seen.sum()),), number % 6 == 0) for number, seen in enumerate(there)])
    mean, spread = x.mean(0), x.std(0) + 1e-4

    def read(values: Tensor) -> Tensor:
        return network(((values - mean) / spread).clamp(-8, 8))[..., 0].clamp(-6, 3)

    def loss(rows: Tensor) -> Tensor:  # Poisson's: its least is where exp(output) is the expected KL
        found = read(x[rows])
        return (found.exp() - y[rows] * found).mean()

    network = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.SiLU(), nn.Dropout(0.2), nn.Linear(HIDDEN, 1))
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.3)
    rows, held = (~apart).nonzero()[:, 0], apart.nonzero()[:, 0]
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * math.ceil(len(rows) / BATCH))
    best, kept = math.inf, network.state_dict()
    for _ in range(EPOCHS):
        network.train()
        for some in rows[torch.randperm(len(rows))].split(BATCH):
            optimizer.zero_grad()
            loss(some).backward()
            optimizer.step()
            rate.step()
        network.eval()
        with torch.no_grad():
            found = float(loss(held))
        if found < best:
            best, kept = found, {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(kept)
    return torch.no_grad()(lambda one: read(_inputs(one, state)))


def triggers(tables: Sequence[Table]) -> dict[str, Scorer]:
    """Each by its name; tables to learn from."""
    return {
        "entropy": lambda one: one.before[..., 0].nan_to_num(),
        "norm": lambda one: one.before[..., 1].nan_to_num(),
        "learned, last step": learned(tables, state=False),
        "learned, state": learned(tables, state=True),
        "best there is": lambda one: one.kl.nan_to_num(NEVER),
    }


# ---- comparison -----------------------------------------------------------------------------------------------------


def played(one: Table, scores: Tensor, threshold: float, period: int) -> list[float]:
    """What a text comes to, (4,): summed KL, absurd drafts, LoRA steps, decode steps."""
    losses, regrets, values = one.kl.tolist(), one.regret.tolist(), scores.tolist()
    found, gap = [0.0, 0.0, 0.0, float(len(losses))], 0
    for step, row in enumerate(values):
        if gap == period - 1 or row[gap] >= threshold:
            gap = 0
            continue
        found[LOSS] += losses[step][gap]
        found[TAKEN] += regrets[step][gap] > ABSURD
        found[LORA] += 1
        gap += 1
    return found


Curve = Tensor  # (points, texts, 4)


def fixed(tables: Sequence[Table]) -> Curve:
    """The fixed schedules of all periods."""
    nothing = [torch.zeros_like(one.kl) for one in tables]
    periods = range(1, tables[0].kl.shape[1] + 2)
    return torch.tensor([[played(*pair, NEVER, w) for pair in zip(tables, nothing, strict=True)] for w in periods])


def curve(tables: Sequence[Table], scorer: Scorer, period: int) -> Curve:
    """A trigger at all its thresholds, `period` being the longest gap."""
    scores = [scorer(one) for one in tables]
    every = torch.cat([given[~one.kl.isnan()] for given, one in zip(scores, tables, strict=True)])
    levels = [*every.quantile(torch.linspace(0.01, 0.995, THRESHOLDS)).tolist(), NEVER]
    return torch.tensor(
        [[played(*pair, level, period) for pair in zip(tables, scores, strict=True)] for level in levels]
    )


def at_share(points: Curve, share: float, column: int, weights: Tensor) -> float:
    """A figure for each decode step at a share of LoRA steps, between the points; weights: how often a text counts."""
    sums = (points * weights[:, None]).sum(1)
    steps = sums[:, STEPS]
    line = zip((sums[:, LORA] / steps).tolist(), (sums[:, column] / steps).tolist(), strict=True)
    return interpolate([(0.0, 0.0), *line], share)


def interval(one: Curve, other: Curve, share: float) -> tuple[float, float, float]:
    """How much more one loses than the other for each decode step at a share, and its 95% interval over the texts."""
    texts, rng = one.shape[1], random.Random(0)

    def difference(drawn: Sequence[int]) -> float:
        weights = torch.bincount(torch.tensor(drawn), minlength=texts)
        return at_share(one, share, LOSS, weights) - at_share(other, share, LOSS, weights)

    found = sorted(difference(rng.choices(range(texts), k=texts)) for _ in range(DRAWS))
    outside = round(0.025 * DRAWS)
    return difference(range(texts)), found[outside], found[-1 - outside]


def lines(learn: Sequence[Table], judge: Sequence[Table]) -> list[str]:
    """The comparison as Markdown."""
    found = [
        "| longest gap | LoRA steps | trigger | KL, LoRA steps | KL, all steps | drafts taken back | against fixed "
        "| against entropy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    schedules, scorers, all_once = fixed(judge), triggers(learn), torch.ones(len(judge))
    for period, shares in SHARES.items():
        curves = {name: curve(judge, scorer, period) for name, scorer in scorers.items()}
        for share in (share for share in shares if share <= 1 - 1 / period):
            for name, points in {"fixed": schedules, **curves}.items():
                loss, taken = (at_share(points, share, column, all_once) for column in (LOSS, TAKEN))
                against = [
                    "-" if points is other else "{:+.4f} ({:+.4f} to {:+.4f})".format(*interval(points, other, share))
                    for other in (schedules, curves["entropy"])
                ]
                found.append(
                    f"| {period} | {share:.0%} | {name} | {loss / share:.3f} | {loss:.4f} | {taken / share:.1%} | "
                    + " | ".join(against)
                    + " |"
                )
    return found


# ---- free running ---------------------------------------------------------------------------------------------------


class Looking(NativeDecoder):
    """Makes a step full where a learned trigger expects so much of it. To see its state it reads some layers twice."""

    def __init__(self, loaded: LoadedModel, scorer: Scorer, level: float):
        assert isinstance(loaded.weights, NativeWeights), "the C decoder does not run here"
        super().__init__(loaded.model, loaded.weights)
        self.scorer, self.level = scorer, level

    def step(self, token: Tensor, state: DecodeState) -> DecoderOutput:
        assert isinstance(state, NativeState)
        refresher, schedule = state.refresher, state.schedule
        gap, first = refresher.step - refresher.last_refresh, first_skipped(schedule)
        if gap < schedule.period - 1:
            state.begin()
            h = self._embedded(token)
            self._run(state, range(first), h, state.position)
            for i in range(first):
                state.kv.cut(i, 1)
            state.recount()
            nothing = torch.zeros(1, LONGEST - 1)
            before = torch.full((1, LONGEST - 1, 2), refresher.entropy or 0.0)
            if float(self.scorer(Table(nothing, nothing, before, h))[0, gap]) >= self.level:
                refresher.last_refresh = refresher.step + 1 - schedule.period  # due
        return super().step(token, state)


def answered(
    loaded: LoadedModel,
    decoder: Decoder,
    config: LoraDropConfig,
    prompts: Sequence[list[int]],
    costs: tuple[float, float],
) -> str:
    """A row of Markdown: what a setting answers. `costs`: of a LoRA step and of a further row, in full steps."""
    schedule = config.schedule_for(loaded.num_layers)
    bank, _ = find_bank(loaded, config, schedule)
    regret, spent, drafts, kept, lora, repeats = [], 0.0, 0, 0, 0, 0.0
    for prompt in prompts:
        lane = Lane(*(decoder, torch.tensor([prompt]), schedule, bank, Sampling(), ANSWER_TOKENS, loaded.stop_ids))
        for event in lane:
            if isinstance(event, Verified) or (isinstance(event, StepResult) and event.kind == "refresh"):
                spent += 1 + costs[1] * (event.rows - 1)
            elif isinstance(event, StepResult) and event.kind == "lora":
                spent, lora = spent + costs[0], lora + 1
        regret.append(regrets(read_target(loaded.new_decoder(), prompt, lane.tokens), torch.tensor(lane.tokens)))
        drafts, kept, repeats = drafts + lane.drafts, kept + lane.accepted, repeats + repeated_share(lane.tokens)
    every = torch.cat(regret)
    steps = len(every) - len(prompts)  # a prompt's prefill gives its first token
    stay = kept / drafts if drafts else 1.0
    return (
        f"| {config.period} | {config.accept:g} | {every.mean():.3f} | {every.max():.2f} | "
        f"{stay:.1%} | {repeats / len(prompts):.3f} | {lora / steps:.2f} | {steps / spent:.3f} |"
    )


def free_lines(
    loaded: LoadedModel,
    config: LoraDropConfig,
    learn: Sequence[Table],
    prompts: Sequence[list[int]],
    costs: tuple[float, float],
) -> list[str]:
    """The preset as it is, then a learned trigger's at some longest gaps and quantiles of what it expects."""
    found = [
        "| full steps | longest gap | accept | regret | worst | drafts kept | repeated 4-grams | LoRA steps a token "
        "| speed, computed |",
        "|---|---|---|---|---|---|---|---|---|",
        "| fixed " + answered(loaded, loaded.new_decoder(), config, prompts, costs),
    ]
    scorer = learned(learn, state=True)
    every = torch.cat([scorer(one)[~one.kl.isnan()] for one in learn])
    for period, share in FREE:
        level = float(every.quantile(share))
        setting = config.replace(period=period, refresh_entropy=NEVER)  # so that the entropy is known
        row = answered(loaded, Looking(loaded, scorer, level), setting, prompts, costs)
        found.append(f"| at an expected {math.exp(level):.2f} " + row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Does a learned trigger pay?")
    parser.add_argument("replies", type=Path, help="text that the model wrote itself, to learn from")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--preset", default="balanced", help="with exact full steps")
    parser.add_argument("--texts", type=int, default=128, help="of the file")
    parser.add_argument("--tokens", type=int, default=112, help="of each")
    parser.add_argument("--prompts", type=int, default=len(HELD_OUT), help="held-out ones")
    parser.add_argument("--free", action="store_true", help="also let the preset answer")
    parser.add_argument("--lora", type=float, default=0.62, help="cost of a LoRA step")
    parser.add_argument("--row", type=float, default=0.15, help="cost of each further row of a repair")
    args = parser.parse_args()
    loaded = load_model(args.model, "cpu")
    config = preset_named(args.preset, args.model).config.replace(period=LONGEST)
    schedule = config.schedule_for(loaded.num_layers)
    bank, _ = find_bank(loaded, config, schedule)
    own = own_answers(loaded, HELD_OUT[: args.prompts]).texts().pairs
    replies = read_replies(args.replies, loaded)[: args.texts]
    given = [(ids[:prompt], ids[prompt : prompt + args.tokens]) for ids, prompt in replies]
    learn, judge = (
        [table(loaded, schedule, bank, prompt, answer) for prompt, answer in pairs if len(answer) > 2]
        for pairs in (given, own)
    )
    print("\n".join(lines(learn, judge)))
    if args.free:
        own_period = preset_named(args.preset, args.model).config.period
        prompts, costs = [prompt for prompt, _ in own], (args.lora, args.row)
        print("\n".join(free_lines(loaded, config.replace(period=own_period), learn, prompts, costs)))


if __name__ == "__main__":
    main()
