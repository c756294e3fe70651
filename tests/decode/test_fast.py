"""The fast decoders, static and native, against the reference: each rule, part, kv rule, architecture; the blocks."""

import copy
import itertools

import pytest
import torch

from lora_drop.decode.cache import BLOCK, KVCache
from lora_drop.decode.layer import is_supported
from lora_drop.decode.native.decoder import NativeDecoder
from lora_drop.decode.native.weights import lay_out
from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.decode.static.decoder import StaticWeights
from lora_drop.method.schedule import KV_RULES, PARTS, REFRESHES, REUSE_RULES, Schedule, baseline_schedule
from lora_drop.models import bundled as bundled_files
from lora_drop.models.download import GGUF
from lora_drop.models.gguf import gguf_rows
from tests.support.decoding import (
    DECODERS,
    FAST,
    PROMPT,
    TARGET,
    decoder_of,
    logits_of,
    needs_compiler,
    outputs_of,
    random_bank,
)
from tests.support.naive import naive_logits
from tests.support.parts import full_bank


def compare(model, fast, schedule, bank=None, prompt=PROMPT, target=TARGET):
    """Assert that a fast decoder is the reference: logits, watched outputs, K/V and pending tokens."""
    (one, state), (two, ours) = (
        outputs_of(decoder, schedule, bank, prompt, target, watch=True) for decoder in (ReferenceDecoder(model), fast)
    )
    right, got = (torch.stack([output.logits for output in outputs[1:]]) for outputs in (one, two))
    far = ~torch.isclose(got, right, rtol=1e-4, atol=2e-4)
    # Rounding may swap the last of the screened head's best tokens with the first of the others.
    assert far.sum(-1).max() <= (2 if schedule.head == "screened" else 0)
    right, got = (torch.stack([output.watched for output in outputs[1:]]) for outputs in (one, two))
    torch.testing.assert_close(got, right, rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(two[0].logits, one[0].logits, rtol=1e-4, atol=2e-4)
    assert ours.kv.lengths == state.kv.lengths and len(ours.pending) == len(state.pending)
    for i in range(fast.num_layers):
        pair = (torch.stack(its.kv.filled(i)) for its in (ours, state))
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)
    return ours, state


@pytest.fixture(scope="session", params=FAST)
def fused(any_tiny, request):
    """A fast decoder of each kind for each architecture."""
    return decoder_of(any_tiny.model, request.param)


@pytest.mark.products
@pytest.mark.parametrize(("reuse", "part", "kv"), itertools.product(REUSE_RULES, PARTS, KV_RULES))
@pytest.mark.parametrize("variant", ["bare", *REFRESHES])
def test_it_is_the_reference(any_tiny, fused, reuse, part, kv, variant):
    """Without corrections; and with them and a screened head, with refreshes of each kind."""
    rules = {} if variant == "bare" else {"refresh": variant, "head": "screened"}
    schedule = Schedule(4, any_tiny.num_layers, (2, 3, 4), reuse, part, kv, **rules)
    bank = full_bank(any_tiny, reuse, part, layers=[2, 4]) if rules else None  # layer 3 has the bare rule
    ours, state = compare(any_tiny.model, fused, schedule, bank)
    if variant != "repair":
        assert ours.kv.allocated_bytes == state.kv.allocated_bytes


@pytest.mark.parametrize("kind", FAST)
def test_adaptive_refreshes_are_the_references(tiny, kind):
    schedule = Schedule(8, tiny.num_layers, (2, 3, 4), refresh_entropy=4.6, head="screened")
    bank = full_bank(tiny, "residual")
    kinds = []
    for decoder in (ReferenceDecoder(tiny.model), decoder_of(tiny.model, kind)):
        state = decoder.new_state(schedule, bank)
        decoder.prefill(torch.tensor([PROMPT]), state)
        for token in TARGET * 3:
            decoder.step(torch.tensor([[token]]), state)
            kinds.append((state.refresher.kind, state.refresher.trigger))
    half = len(kinds) // 2
    assert kinds[:half] == kinds[half:] and {trigger for _, trigger in kinds} == {None, "entropy"}


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("length", range(1, 6))
@pytest.mark.parametrize("known", [True, False])
def test_full_steps_by_position_follow_the_formula(tiny, kind, length, known):
    """The schedule of the paper's published code, on prompts of any length modulo 4, with buffers reserved or not."""
    prompt, target = PROMPT[:length], TARGET * 7
    schedule = Schedule(8, tiny.num_layers, (1, 2, 3), "anchor", refresh_position=4)
    bank = random_bank(tiny, "anchor")
    full = {gen for gen in range(1, len(target) + 1) if gen % 8 == 0 or (length - 1 + gen) % 4 == 0}
    sizes = {"tokens": length + len(target)} if known else {}
    ours, state = logits_of(decoder_of(tiny.model, kind), schedule, bank, prompt, target, **sizes)
    expected = naive_logits(tiny.model, prompt + target, length, schedule, bank, full)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-4)
    assert state.refresher.refreshes == len(full) == schedule.refreshes(length, len(target))
    assert state.kv.lengths[2] == length + len(full) == schedule.kv_length(2, length, len(target))


@pytest.mark.products
@pytest.mark.parametrize(
    "length", [1, 2, 63, 64, 65, 127, 4 * BLOCK - 5, pytest.param("context", marks=pytest.mark.full)]
)
def test_odd_lengths_and_a_period_longer_than_the_run(any_tiny, fused, length):
    """At the borders of the caches' blocks, from a prompt of one token, and to the context's last token."""
    count = any_tiny.context - len(TARGET) if length == "context" else length
    for period in (4, 50):
        schedule = Schedule(period, any_tiny.num_layers, (2, 3))
        compare(any_tiny.model, fused, schedule, prompt=[n * 11 % 256 for n in range(count)])


def test_fused_weights_are_there_once(tiny):
    """The modules keep views: nothing is stored twice, and the model still computes the same."""
    model = copy.deepcopy(tiny.model)
    ids = torch.tensor([PROMPT])
    before = model(ids).logits
    StaticWeights.of(model)
    assert torch.equal(model(ids).logits, before)
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.weight.untyped_storage().data_ptr() == attention.v_proj.weight.untyped_storage().data_ptr()


def test_a_scaling_that_changes_with_the_length_runs_the_reference(tiny):
    model = copy.deepcopy(tiny.model)
    assert is_supported(model)
    model.model.rotary_emb.rope_type = "dynamic"
    assert not is_supported(model)


# ---- the bundled model in its own blocks ----


def blocks(model):
    """The rows of the bundled model's GGUF."""
    config = model.config
    path = bundled_files.ensure() / GGUF.name
    return gguf_rows(path, config.num_attention_heads, config.num_key_value_heads)


# Logits that may move, by the stored weights' rounding. Where the top two are closer, another token may come first.
TOLERANCE, MEAN_KL = 0.25, 0.002


@needs_compiler
def test_packed_steps_are_the_model_within_the_tolerance(bundled):
    """Teacher-forced on the full model's greedy text: the same token wherever the top-2 gap is above the tolerance."""
    decoder = NativeDecoder(bundled.model, lay_out(bundled.model, blocks(bundled.model)))
    prompt = bundled.tokenizer("The three laws of motion say that", return_tensors="pt").input_ids
    text = bundled.model.generate(prompt, max_new_tokens=48, do_sample=False)[0].tolist()
    full = bundled.model(torch.tensor([text])).logits[0, prompt.shape[1] - 1 : -1]
    ours, _ = logits_of(decoder, baseline_schedule(30), None, prompt[0].tolist(), text[prompt.shape[1] : -1])
    top = full.topk(2).values
    clear = top[:, 0] - top[:, 1] > TOLERANCE
    assert clear.sum() > 30
    assert torch.equal(ours.argmax(-1)[clear], full.argmax(-1)[clear])
    kl = (full.softmax(-1) * (full.log_softmax(-1) - ours.float().log_softmax(-1))).sum(-1)
    assert kl.mean() < MEAN_KL


def test_chunks_are_read_as_the_reference_reads_them(any_tiny, fused):
    """From nothing, with logits of the end only, and then a chunk after what the cache holds: the audit's two ways."""
    tokens = torch.tensor([PROMPT + TARGET])
    results = []
    for decoder in (ReferenceDecoder(any_tiny.model), fused):
        kv = KVCache(any_tiny.num_layers)
        first = decoder.read(tokens[:, :9], kv, 0, (2, 4), logits_from=4)
        second = decoder.read(tokens[:, 9:], kv, 9, (2, 4))
        third = decoder.read(tokens[:, :1], kv, tokens.shape[1], ())
        parts = [part for output in (first, second, third) for part in (output.watched, output.logits)]
        results.append([*parts, torch.tensor(kv.lengths)])
    for one, other in zip(*results, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(other, one, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("kind", FAST)
def test_the_audit_of_a_baseline_finds_no_drift_at_all_where_the_arithmetic_is_one(tiny, kind):
    """At period 1 the lane is the full model; read in C, token by token as the lane did, to the last bit."""
    decoder = decoder_of(tiny.model, kind)
    schedule = Schedule(1, tiny.num_layers, (2, 3))
    outputs, _ = outputs_of(decoder, schedule, watch=True)
    logits = torch.cat([output.logits for output in outputs[1:]])
    kv = KVCache(tiny.num_layers)
    decoder.read(torch.tensor([PROMPT]), kv, 0, (), len(PROMPT) - 1)
    full = decoder.read(torch.tensor([TARGET]), kv, len(PROMPT), schedule.dropped)
    ours = torch.cat([output.watched for output in outputs[1:]], 1)  # (n, T, D)
    if kind == "native":
        assert torch.equal(full.logits[0], logits) and torch.equal(full.watched[:, 0], ours)
    else:
        torch.testing.assert_close(full.watched[:, 0], ours, rtol=1e-4, atol=1e-4)
