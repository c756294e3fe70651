"""Self-generated text: the prompts, batched replies, a file that goes on after any kill, and what is refused."""

import copy
import hashlib
import json
import re
from dataclasses import replace

import pytest
import torch

from lora_drop.errors import LoraDropError
from lora_drop.models.load import load_model
from lora_drop.models.tokens import ByteTokenizer, encode_prompt
from lora_drop.run.results.prompts import SAMPLE_PROMPTS
from lora_drop.training.prompts import all_prompts, seed_prompts
from lora_drop.training.self_generate import Sampling, generate_batch, read_self_generated, self_generate
from tests.support import ROOT
from tests.support.faults import files_of_at_most

SMALL = Sampling(seed=3, max_new_tokens=12, batch_size=4)
GREEDY = Sampling(max_new_tokens=24, temperature=0.0)
COUNT = 10  # two batches and a half
PROMPTS = [[256, *text.encode()] for text in ("a", "What is a tide?", "Explain sound to a ten-year-old.", "Why not?")]


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """An uninterrupted file."""
    path = tmp_path_factory.mktemp("whole") / "self.jsonl"
    assert self_generate(tiny, COUNT, path, SMALL) == COUNT
    return path


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def ending(loaded, token):
    """The same model, whose texts also end at `token`."""
    tokenizer = type("Ending", (ByteTokenizer,), {"eos_token_id": token})()
    return replace(loaded, tokenizer=tokenizer)


# ---- prompts --------------------------------------------------------------------------------------------------------


def test_the_prompts_and_their_order_stay_as_they_are():
    """A file of self-generated text goes on only where its prompts do; the order of `all_prompts` is drawn from."""
    prompts = all_prompts()
    assert len({re.sub(r"\W+", " ", prompt).strip().lower() for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        assert prompt == prompt.strip() and not re.search(r"[{}|\n]|  ", prompt) and 10 < len(prompt) < 300
    digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
    assert (len(prompts), digest) == (5193, "161e1714cda2d43b13cc2f7802b9d647cce82cb6f8fce8eb8bf6b14347969664")


def test_no_prompt_is_one_that_the_page_the_samples_or_the_readme_show():
    prompts = list(SAMPLE_PROMPTS)
    for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        prompts += re.findall(r'--prompt "([^"]+)"', file.read_text())
    ours = {re.sub(r"\W+", " ", prompt).strip().lower() for prompt in all_prompts()}
    for prompt in prompts:
        assert re.sub(r"\W+", " ", prompt).strip().lower() not in ours


def test_prompts_follow_from_the_seed_and_come_again_only_when_all_have_come():
    everything = len(all_prompts())
    drawn = seed_prompts(2 * everything + 5, seed=1)
    assert len(set(drawn[:everything])) == len(set(drawn[everything : 2 * everything])) == everything
    assert drawn[:everything] != drawn[everything : 2 * everything]
    assert seed_prompts(50, seed=1) == drawn[:50] != seed_prompts(50, seed=2)


# ---- replies --------------------------------------------------------------------------------------------------------


def test_a_batched_greedy_reply_is_the_unbatched_one(any_tiny):
    alone = []
    for prompt in PROMPTS:  # no padding, and transformers is left to itself
        out = any_tiny.model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=24,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip
        alone.append(out[0, len(prompt) :].tolist())
    assert generate_batch(any_tiny, PROMPTS, GREEDY) == alone
    assert len({tuple(reply) for reply in alone}) == len(PROMPTS)
    # One reply ends early and the others go on; what fills its row up is no part of it.
    stop = alone[1][5]
    expected = [reply[: reply.index(stop) + 1] if stop in reply else reply for reply in alone]
    assert len(expected[1]) <= 6 and max(map(len, expected)) == 24
    assert generate_batch(ending(any_tiny, stop), PROMPTS, GREEDY) == expected


def test_sampling_follows_from_the_seed_and_touches_no_other_random_number(tiny):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    hot = Sampling(seed=1, max_new_tokens=16, temperature=1.0)
    one = generate_batch(tiny, PROMPTS, hot, 3)
    assert torch.equal(torch.rand(3), expected)
    assert one == generate_batch(tiny, PROMPTS, hot, 3)
    assert one not in (generate_batch(tiny, PROMPTS, hot, 4), generate_batch(tiny, PROMPTS, replace(hot, seed=2), 3))
    greedy = generate_batch(tiny, PROMPTS, replace(hot, temperature=0.0))
    assert one != greedy == generate_batch(tiny, PROMPTS, replace(hot, top_p=1e-6))


def test_the_models_own_generation_config_does_not_shape_the_text(tiny):
    model = copy.deepcopy(tiny.model)
    model.generation_config.update(top_k=1, repetition_penalty=3.0, temperature=0.1, no_repeat_ngram_size=1)
    other = replace(tiny, model=model)
    for sampling in (GREEDY, replace(GREEDY, temperature=1.0)):
        assert generate_batch(other, PROMPTS, sampling) == generate_batch(tiny, PROMPTS, sampling)


# ---- the file -------------------------------------------------------------------------------------------------------


def test_a_record_is_prompt_reply_and_their_tokens(tiny, whole, tmp_path):
    rows = records(whole)
    assert [row["prompt"] for row in rows] == seed_prompts(COUNT, seed=3)
    for row in rows:
        prompt = encode_prompt(tiny.tokenizer, row["prompt"])
        assert row["token_ids"][: len(prompt)] == prompt
        reply = row["token_ids"][len(prompt) :]
        assert 1 <= len(reply) <= 12 and row["text"] == tiny.tokenizer.decode(reply, skip_special_tokens=True)
    assert read_self_generated(whole, tiny) == [row["token_ids"] for row in rows]
    assert read_self_generated(whole, tiny, limit=3) == [row["token_ids"] for row in rows[:3]]
    (tmp_path / "cut").write_bytes(whole.read_bytes()[:-1])
    assert read_self_generated(tmp_path / "cut", tiny) == [row["token_ids"] for row in rows[:-1]]
    header = json.loads(whole.read_text().splitlines()[0])
    assert (header["revision"], header["seed"], header["temperature"]) == (tiny.revision, 3, 0.8)


@pytest.mark.full
def test_a_file_cut_at_any_byte_goes_on_to_the_uninterrupted_one(tiny, whole, tmp_path):
    content = whole.read_bytes()
    ends = [at + 1 for at, byte in enumerate(content) if byte == 10]
    # Nothing; within the header; its end without and with the newline; within records, at and around their ends.
    cuts = [0, 1, ends[0] - 1, *ends[:5], ends[0] + 1, ends[2] + 30, ends[4] - 1, ends[9], ends[10] - 1]
    cuts += torch.randint(len(content), (6,), generator=torch.Generator().manual_seed(0)).tolist()
    for cut in cuts:
        (tmp_path / "cut").write_bytes(content[:cut])
        assert self_generate(tiny, COUNT, tmp_path / "cut", SMALL) == COUNT
        assert (tmp_path / "cut").read_bytes() == content, cut


def test_a_higher_count_makes_the_file_longer_and_a_lower_one_leaves_it(tiny, whole, tmp_path):
    path, calls = tmp_path / "grows", []
    two = b"".join(whole.read_bytes().splitlines(keepends=True)[:3])  # the header and two records
    path.write_bytes(two)
    assert self_generate(tiny, 1, path, SMALL) == 2 and path.read_bytes() == two
    assert self_generate(tiny, COUNT, path, SMALL, lambda *call: calls.append(call)) == COUNT
    assert path.read_bytes() == whole.read_bytes()
    made = sum(len(row["token_ids"]) - len(encode_prompt(tiny.tokenizer, row["prompt"])) for row in records(path)[2:])
    whole_batches = [done for done, _ in calls if isinstance(done, int)]
    assert whole_batches == [2, 4, 8, 10] and calls[0][1] == 0 and calls[-1][1] == made
    shares = [done for done, _ in calls]
    assert shares == sorted(shares) and any(4 < done < 8 for done in shares), "within a batch too"


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_what_was_written(tiny, whole, tmp_path):
    path, content = tmp_path / "full", whole.read_bytes()
    room = len(content) * 3 // 4  # the kernel writes that much, and refuses the rest of a line
    with (
        files_of_at_most(room),
        pytest.raises(LoraDropError, match="cannot write full: .*before it are kept") as caught,
    ):
        self_generate(tiny, COUNT, path, SMALL)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content[:room]
    self_generate(tiny, COUNT, path, SMALL)
    assert path.read_bytes() == content


def test_a_path_that_cannot_be_written_is_reported_before_the_first_reply(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny.model, "generate", lambda *args, **kwargs: pytest.fail("it generated"))
    with pytest.raises(LoraDropError, match="cannot write self.jsonl: No such file or directory"):
        self_generate(tiny, COUNT, tmp_path / "missing" / "self.jsonl", SMALL)
    with pytest.raises(LoraDropError, match="is not a file"):
        self_generate(tiny, COUNT, tmp_path, SMALL)
    for precious in (b"a line without an end", b"a text\nof two lines\n"):
        (tmp_path / "notes.txt").write_bytes(precious)
        with pytest.raises(LoraDropError, match="notes.txt"):
            self_generate(tiny, COUNT, tmp_path / "notes.txt", SMALL)
        assert (tmp_path / "notes.txt").read_bytes() == precious


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 4), ("temperature", 0.7), ("top_p", 1.0), ("max_new_tokens", 13), ("batch_size", 5)]
)
def test_a_file_of_other_settings_does_not_go_on(tiny, whole, name, value):
    before = whole.read_bytes()
    with pytest.raises(LoraDropError, match=f"written with {name} {getattr(SMALL, name)}, this run has {value}"):
        self_generate(tiny, COUNT + 1, whole, replace(SMALL, **{name: value}))
    assert whole.read_bytes() == before


def test_a_file_of_another_model_is_neither_continued_nor_read(tiny, whole, tmp_path):
    other = load_model("random:tiny-qwen2", device="cpu", dtype="float32")
    for refused in (lambda: self_generate(other, COUNT, whole, SMALL), lambda: read_self_generated(whole, other)):
        with pytest.raises(LoraDropError, match=f"another model: random:tiny-llama .{tiny.revision}.") as caught:
            refused()
        assert "\n" not in str(caught.value)
    lines = whole.read_bytes().splitlines(keepends=True)
    (tmp_path / "swapped").write_bytes(b"".join([lines[0], lines[2], lines[1]]))
    with pytest.raises(LoraDropError, match="line 2 of swapped does not answer the prompt"):
        self_generate(tiny, COUNT, tmp_path / "swapped", SMALL)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"\xff\xfe", "line 3 of broken is not JSON"),
        (b"{", "line 3 of broken is not JSON"),
        (b"[" * 100_000, "line 3 of broken is not JSON"),
        (b"[1]", "line 3 of broken is no record"),
        (b'{"prompt": "a", "text": "b", "token_ids": []}', "is no record"),
        (b'{"prompt": "a", "text": "b"}', "is no record"),
        (b'{"prompt": "a", "text": "b", "token_ids": [1, 258]}', "token id 258, the model's are 0 to 257"),
        (b'{"prompt": "a", "text": "b", "token_ids": [-1]}', "token id -1"),
        (b'{"prompt": "a", "text": "b", "token_ids": [true]}', "token id True"),
    ],
)
def test_a_broken_file_is_one_line(tiny, whole, tmp_path, line, says):
    good = whole.read_bytes().splitlines(keepends=True)
    broken = b"".join([*good[:2], line + b"\n", *good[3:]])
    (tmp_path / "broken").write_bytes(broken)
    for refused in (read_self_generated, lambda path, loaded: self_generate(loaded, COUNT, path, SMALL)):
        with pytest.raises(LoraDropError, match=says) as caught:
            refused(tmp_path / "broken", tiny)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "broken").read_bytes() == broken


def test_a_file_without_header_or_records_is_refused(tiny, whole, tmp_path):
    with pytest.raises(LoraDropError, match="cannot read none: No such file"):
        read_self_generated(tmp_path / "none", tiny)
    lines = whole.read_bytes().splitlines(keepends=True)
    newer = lines[0].replace(b'"version": 1', b'"version": 2')
    for content, says in (
        (b"", "no header"),
        (lines[1], "no header"),
        (lines[0], "no record yet"),
        (newer + lines[1], "version 2"),
    ):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(LoraDropError, match=says):
            read_self_generated(tmp_path / "file", tiny)


@pytest.mark.parametrize(
    ("count", "longest", "says"), [(0, 12, "count must be"), (9, 4096, "model's context of 4096")]
)
def test_what_cannot_be_sampled_is_refused_before_a_file_is_made(tiny, tmp_path, count, longest, says):
    with pytest.raises(LoraDropError, match=says):
        self_generate(tiny, count, tmp_path / "self.jsonl", replace(SMALL, max_new_tokens=longest))
    assert not (tmp_path / "self.jsonl").exists()
