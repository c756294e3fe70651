"""The model writes its own training text: seed prompts, and the replies that the full model samples to them.

A bank is trained for the text that this model will decode, and nothing is closer to it than its own replies; they are
also free of other people's rights. `self_generate` writes a JSON Lines file, `read_self_generated` gives its tokens.

The first line of a file names the model and the settings. Record n answers prompt n of `seed_prompts`, and its batch
draws from (seed, number of the batch): a run that was killed goes on, and ends with the file it would have written.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from lora_drop.errors import LoraDropError
from lora_drop.models.load import LoadedModel
from lora_drop.models.tokens import encode_prompt

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
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Answer `count` seed prompts with the full model and append each as a line of `path`, batch by batch.

    A line is `{"prompt": ..., "text": the reply, "token_ids": [prompt, reply, end token if it was reached]}`. A file
    that is there already goes on after its last whole record; one with `count` records or more is left as it is.
    Only one process may write a file at a time.

    Args:
        loaded: from `load_model`; the text also depends on its number type and kind of device, so the file names them.
        count: records that the file shall have. A higher count makes an earlier file longer.
        seed: of the prompts' order and of the replies.
        max_new_tokens: tokens of a reply at most, the end token included.
        temperature, top_p: of the sampling; temperature 0 is greedy.
        batch_size: replies that are written side by side. It takes part in what is drawn, so a file keeps to one.
        progress: called with (records in the file, reply tokens written by this call), first before any work.

    Returns:
        The records that the file has.

    Raises:
        LoraDropError: a setting, a file of another model or other settings, no room for the file. What was written
            before stays.
    """
    _check_settings(count, seed, max_new_tokens, temperature, top_p, batch_size)
    path = Path(path)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "model": loaded.id,
        "revision": loaded.revision,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": loaded.device.type,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "temperature": float(temperature),
        "top_p": float(top_p),
        "batch_size": batch_size,
    }
    first = _line(header)
    content = _read(path) if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]  # what follows was cut short by a kill
    if not whole and not first.startswith(content):
        raise LoraDropError(f"{path.name} holds something else than self-generated text: name another file.")
    records = []
    if whole:
        found, records = _parse(path, whole, loaded)
        _check_header(path, found, header)
    done = len(records)
    prompts = seed_prompts(max(count, done), seed)
    for number, (record, prompt) in enumerate(zip(records, prompts, strict=False), start=2):
        if record["prompt"] != prompt:
            raise LoraDropError(
                f"line {number} of {path.name} does not answer the prompt that belongs there, so it cannot go on: "
                "name another file."
            )
    if whole == content and done >= count:
        if progress:
            progress(done, 0)
        return done
    encoded = [encode_prompt(loaded.tokenizer, prompt) for prompt in prompts[:count]]
    longest = max(map(len, encoded))
    if longest + max_new_tokens > loaded.context:
        raise LoraDropError(
            f"max_new_tokens {max_new_tokens} and the longest prompt's {longest} are more than the model's context of "
            f"{loaded.context}: lower max_new_tokens."
        )
    # Written before the first reply: what is wrong with the path is told at once. The cut end goes only now.
    _append(path, [] if whole else [first], len(whole), done)
    tokens = 0
    if progress:
        progress(done, tokens)
    for start in range(done - done % batch_size, count, batch_size):
        batch = encoded[start : start + batch_size]
        replies = generate_batch(
            loaded, batch, max_new_tokens, temperature, top_p, _batch_seed(seed, start // batch_size)
        )
        lines = [
            _line({"prompt": prompts[n], "text": _text(loaded, replies[n - start]), "token_ids": ids})
            for n, ids in enumerate(map(list.__add__, batch, replies), start=start)
            if n >= done  # of a batch that is there in part, the rest
        ]
        _append(path, lines, None, done)
        tokens += sum(map(len, replies[len(replies) - len(lines) :]))
        done += len(lines)
        if progress:
            progress(done, tokens)
    return done


def read_self_generated(path: str | Path, loaded: LoadedModel, limit: int | None = None) -> list[list[int]]:
    """The token ids of each record, of the first `limit` if given; a last line cut short by a kill is left out.

    Raises:
        LoraDropError: there is no such file, it is of another model, or what is in it is no self-generated text.
    """
    path = Path(path)
    content = _read(path)
    header, records = _parse(path, content[: content.rfind(b"\n") + 1], loaded)
    if header.get("revision") != loaded.revision:
        raise LoraDropError(_other_model(path, header, loaded.id, loaded.revision))
    if not records:
        raise LoraDropError(f"{path.name} has no record yet.")
    return [record["token_ids"] for record in records[:limit]]


def _line(record: dict[str, Any]) -> bytes:
    """ASCII only: no character in it that any reader takes for the end of a line."""
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
    """Add lines, after cutting the file to `size` bytes if that is given.

    Raises:
        LoraDropError: it cannot be written; the `done` records before stay.
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
    """Header and records of whole lines. Raises LoraDropError: naming the line that is wrong."""
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


def _check_header(path: Path, found: dict[str, Any], header: dict[str, Any]) -> None:
    """Refuse to go on with a file of another model or of other settings."""
    if found.get("revision") != header["revision"]:
        raise LoraDropError(_other_model(path, found, header["model"], header["revision"]) + " Name another file.")
    for name in ("dtype", "device", "seed", "max_new_tokens", "temperature", "top_p", "batch_size"):
        if found.get(name) != header[name]:
            raise LoraDropError(
                f"{path.name} was written with {name} {found.get(name)}, this run has {header[name]}: use the same "
                "settings, or name another file."
            )


def _other_model(path: Path, found: dict[str, Any], name: str, revision: str) -> str:
    return (
        f"{path.name} was written by another model: {found.get('model')} ({found.get('revision')}), this is {name} "
        f"({revision})."
    )


def _check_settings(
    count: int, seed: int, max_new_tokens: int, temperature: float, top_p: float, batch_size: int
) -> None:
    for name, value in (("count", count), ("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise LoraDropError(f"{name} must be at least 1, got {value}.")
    if not 0 <= seed < 2**63:
        raise LoraDropError(f"seed must lie between 0 and 2^63 - 1, got {seed}.")
    if not 0 <= temperature <= 10:  # also refuses NaN
        raise LoraDropError(f"temperature must lie between 0 and 10, got {temperature}.")
    if not 0 < top_p <= 1:
        raise LoraDropError(f"top_p must lie above 0 and at most at 1, got {top_p}.")


# ---- replies --------------------------------------------------------------------------------------------------------


def generate_batch(
    loaded: LoadedModel,
    prompts: list[list[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[list[int]]:
    """transformers' own `generate` over a batch: the new tokens of each prompt, the end token last if it was reached.

    Args:
        prompts: token ids, of any lengths.
        temperature: 0 is greedy.
        seed: of torch's generators, which are put back afterwards.

    Raises:
        LoraDropError: the batch does not fit into the memory of the device.
    """
    longest = max(map(len, prompts))
    stops = sorted(loaded.stop_ids)
    pad = stops[0] if stops else 0  # any token will do: it is masked on the left, and cut off on the right
    # Padding stands on the left: the new tokens follow the prompt's last one. `generate` counts positions by the mask.
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=loaded.device)  # (B, longest)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=loaded.device)
    sampling = {"temperature": float(temperature), "top_p": float(top_p)} if temperature else {}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=bool(temperature),
        **sampling,
        eos_token_id=stops or None,
        pad_token_id=pad,
        # What is not named here comes from the model's own generation config. These some models set there, and the
        # text shall be what the decode engine would sample.
        top_k=0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
    )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        try:
            out = loaded.model.generate(ids, attention_mask=mask, generation_config=config)  # (B, longest + new)
        except torch.OutOfMemoryError as error:
            raise LoraDropError(
                f"a batch of {len(prompts)} does not fit into the memory of {loaded.device}: lower batch_size."
            ) from error
    return [_to_end(row, loaded.stop_ids) for row in out[:, longest:].tolist()]


def _to_end(ids: list[int], stop_ids: frozenset[int]) -> list[int]:
    """Up to and with the first end token: what follows is padding."""
    end = next((at for at, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[: end + 1]


def _batch_seed(seed: int, batch: int) -> int:
    """A seed of the batch's own, 63 bits: neighbouring seeds and batches have nothing in common."""
    return int.from_bytes(hashlib.sha256(f"{seed} batch {batch}".encode()).digest()[:8], "little") >> 1


# ---- seed prompts ---------------------------------------------------------------------------------------------------


def seed_prompts(count: int, seed: int = 0) -> list[str]:
    """`count` prompts in an order of the seed; a higher count begins with the same ones.

    No prompt comes twice before each has come once; after that all come again, in another order.
    """
    prompts: list[str] = []
    for cycle in range(math.ceil(count / len(all_prompts()))):
        prompts += random.Random(f"{seed} prompts {cycle}").sample(all_prompts(), len(all_prompts()))
    return prompts[:count]


@cache
def all_prompts() -> tuple[str, ...]:
    """Every seed prompt once, in a fixed order."""
    return tuple(dict.fromkeys(prompt for templates, fields in _FAMILIES for prompt in _filled(templates, fields)))


def _filled(templates: str, fields: dict[str, str]) -> Iterator[str]:
    values = {name: [value.strip() for value in text.split("|")] for name, text in fields.items()}
    for template in map(str.strip, templates.strip().splitlines()):
        named = [name for name in values if f"{{{name}}}" in template]
        for combination in itertools.product(*(values[name] for name in named)):
            yield template.format(**dict(zip(named, combination, strict=True)))


# ---- the prompts' parts ---------------------------------------------------------------------------------------------

# Each family: templates, one a line, and what goes into their fields, between bars. Every template is filled with
# every combination of the values it names.
_FAMILIES: list[tuple[str, dict[str, str]]] = [
    (
        """What is {x}?
        Explain {x} to a ten-year-old.
        Explain {x} in two or three sentences.
        Why does {x} matter in everyday life?
        Give me a simple example of {x}.
        What do people often get wrong about {x}?
        Write one quiz question about {x}, with its answer.
        What should a beginner know about {x}?
        Explain {x} with an analogy from the kitchen.
        Can you explain {x} in detail?
        Write a short encyclopedia entry about {x}.
        I have a test about {x} tomorrow. What are the key points?
        """,
        {
            "x": (
                "photosynthesis | gravity | inflation | evolution | electricity | magnetism | the water cycle | "
                "friction | supply and demand | compound interest | climate change | the greenhouse effect | erosion "
                "| digestion | the immune system | a vaccine | DNA | a chemical reaction | an atom | radioactivity | "
                "sound | the speed of light | a black hole | an eclipse | a tide | an earthquake | a volcano | the "
                "food chain | pollination | fermentation | recycling | renewable energy | a budget | insurance | "
                "democracy | the rule of law | human rights | a constitution | propaganda | globalisation | empathy | "
                "memory | the placebo effect | confirmation bias | stress | sleep | a habit | the scientific method | "
                "probability | an average | a percentage | a prime number | an algorithm | encryption | the internet "
                "| a database | machine learning | a search engine | open-source software | a metaphor | irony | "
                "perspective in drawing | rhythm in music | a circular economy | biodiversity | nutrition"
            ),
        },
    ),
    (
        """How do I {x}?
        Give me step-by-step instructions to {x}.
        What do I need before I {x}?
        What mistakes should I avoid when I {x}?
        Write a short checklist for someone who wants to {x}.
        I have never done it before: how can I {x} cheaply?
        What is the hardest part when you {x}, and what helps?
        How long does it take to {x}, and can I do it alone?
        Teach me how to {x}, one step after the other.
        Give me one clever trick that helps to {x}.
        """,
        {
            "x": (
                "bake bread | boil an egg | make pancakes | cook rice | make vegetable soup | brew good coffee | grow "
                "tomatoes | start a compost heap | repot a plant | clean a bicycle chain | fix a flat tyre | change a "
                "light bulb | paint a room | hang a picture | unclog a sink | remove a coffee stain | iron a shirt | "
                "sew on a button | fold a paper plane | knit a scarf | write a CV | prepare for an interview | give a "
                "short speech | write a thank-you note | plan a birthday party | pack a suitcase | plan a road trip | "
                "read a map | pitch a tent | build a campfire safely | learn to swim | start running | stretch after "
                "sport | learn the guitar | learn to draw faces | take better photographs | train a puppy | care for "
                "a goldfish | move to a new flat | save money for a holiday | make a weekly budget | choose a used "
                "car | back up my files | choose a strong password | organise my emails | set up a home office | "
                "study for an exam | take good notes | memorise a poem | read more books | write a book review | keep "
                "a diary | organise a bookshelf | make a paper lantern | decorate a cake | host a board game evening"
            ),
        },
    ),
    (
        """Write a short story about {who} who {what}.
        Write the first paragraph of a story about {who} who {what}.
        """,
        {
            "who": (
                "a baker | a retired pilot | a shy violinist | a young inventor | a tired postman | a clever fox | an "
                "old sailor | a robot gardener | a village doctor | a lost kitten | a travelling librarian | a night "
                "watchman | a chess teacher | a curious girl | a clockmaker | a dragon | a street artist | a new "
                "student | a taxi driver | a beekeeper"
            ),
            "what": (
                "finds a hidden door | receives a strange letter | wants to see the sea | makes an unlikely friend | "
                "learns to tell the truth | loses something precious | wins a competition by accident | is afraid of "
                "the dark | saves the town festival | discovers an old map | has to keep a secret | gets stuck in the "
                "snow | hears music nobody else can hear | starts a tiny business | forgives an old rival | wakes up "
                "in the future"
            ),
        },
    ),
    (
        """Write a four-line poem about {x}.
        Write a haiku about {x}.
        Describe {x} so that I can picture it.
        Suggest a title and a first sentence for a story about {x}.
        Write the words of a short song about {x}.
        Write a diary entry about {x}.
        Find three unusual comparisons for {x}.
        Write a cheerful postcard about {x}.
        """,
        {
            "x": (
                "the first snow | an empty railway station | my grandmother's kitchen | a storm at sea | autumn "
                "leaves | a quiet library | a busy market | the moon | a forgotten garden | a long train journey | "
                "morning coffee | an old bridge | a river in spring | the desert at night | a city before sunrise | a "
                "childhood friend | a cat on a windowsill | a wooden boat | the smell of rain | a mountain path | a "
                "summer fair | a candle in the dark | an attic full of boxes | a bird in winter | the last day of "
                "school | a small café"
            ),
        },
    ),
    (
        """List three {x}.
        List five {x}.
        Can you name four {x} and say a few words about each?
        What are some {x}? Answer as a bulleted list.
        Give me a numbered list of seven {x}.
        Name two {x} and explain your choice.
        I need ideas: which {x} come to your mind first?
        """,
        {
            "x": (
                "healthy breakfasts | indoor games for children | ways to save water at home | things to do on a "
                "rainy day | hobbies that cost little | vegetables that are easy to grow | ideas for a family picnic "
                "| habits of good listeners | ways to stay focused | ways to fall asleep more easily | questions to "
                "ask in a job interview | gifts for a teacher | animals that live in the desert | birds that cannot "
                "fly | inventions that changed the world | musical instruments with strings | rivers in Europe | "
                "famous scientists | planets of the solar system | uses of vinegar at home | ways to greet a new "
                "neighbour | exercises without equipment | reasons to visit a museum | rules for safe cycling | signs "
                "of a good friendship | ways to reduce food waste | icebreakers for a meeting | names for a bakery | "
                "names for a grey cat | synonyms for the word happy | words that rhyme with light | skills useful in "
                "any job | jobs that involve animals | dishes made with potatoes | ways to learn from mistakes | "
                "things to check before a long drive | ideas for a school project about water | traditions around the "
                "new year"
            ),
        },
    ),
    (
        """Write a short email to {who} {why}.
        Write a friendly message to {who} {why}.
        Draft a formal letter to {who} {why}.
        """,
        {
            "who": (
                "my manager | a colleague | my neighbour | a former teacher | my landlord | a customer | the local "
                "library | a travel agency | my football team | an old friend | the head of my school"
            ),
            "why": (
                "asking to move our meeting to next week | saying thank you for their help | apologising for a late "
                "reply | asking for a quick phone call | sharing some good news | asking for advice about a new job | "
                "explaining that I will be away for two weeks | inviting them to a small celebration | reminding them "
                "of our appointment | suggesting an idea to save energy | asking about opening hours in August"
            ),
        },
    ),
    (
        """Write a {lang} function that {x}.
        Show me a short {lang} program that {x}, and explain it.
        How would you test a {lang} function that {x}?
        """,
        {
            "lang": "Python | JavaScript",
            "x": (
                "reverses a string | checks whether a word is a palindrome | adds up the numbers in a list | finds "
                "the largest number in a list | counts the vowels in a text | converts Celsius to Fahrenheit | "
                "removes duplicates from a list | prints the first ten square numbers | checks whether a number is "
                "prime | computes a factorial | sorts names alphabetically | counts how often each word occurs | "
                "merges two sorted lists | rolls two dice | computes the average of three marks | swaps two variables "
                "| finds the shortest word in a sentence | capitalises every word | checks whether a year is a leap "
                "year | prints a multiplication table | computes the area of a circle | turns seconds into hours and "
                "minutes | finds the common elements of two lists | generates a random password | checks whether "
                "brackets are balanced | splits a bill between friends"
            ),
        },
    ),
    (
        """In programming, what is {x}?
        When would I use {x} in a program? Give a small example.
        What is a typical bug with {x}, and how do I find it?
        """,
        {
            "x": (
                "a loop | a variable | a function | recursion | a dictionary | a class | an exception | a stack | a "
                "queue | an array | a Boolean | a unit test | a regular expression | a cache | an API | version "
                "control | a linked list | a binary search | a thread | a string"
            ),
        },
    ),
    (
        """What is the difference between {x}?
        Compare {x} in a few sentences.
        Explain to a friend how to tell {x} apart.
        Make a small table that compares {x}.
        What do {x} have in common?
        Write a short quiz about the difference between {x}.
        """,
        {
            "x": (
                "a crocodile and an alligator | weather and climate | a comet and an asteroid | a virus and a "
                "bacterium | butter and margarine | tea and coffee | a novel and a short story | a violin and a cello "
                "| a debit card and a credit card | renting and buying a home | a frog and a toad | speed and "
                "velocity | mass and weight | mean and median | a simile and a metaphor | a bee and a wasp | jam and "
                "marmalade | a hare and a rabbit | a lake and a pond | a city and a town | a hurricane and a tornado "
                "| a hypothesis and a theory | a salary and a wage | cats and dogs as pets | trains and planes for "
                "travel | paper books and e-books | working at home and working in an office | solar power and wind "
                "power | a meteor and a meteorite | hardware and software | a laptop and a tablet | a mural and a "
                "fresco | baking soda and baking powder | fruit and vegetables | an opera and a musical | stone and "
                "concrete"
            ),
        },
    ),
    (
        """{who} has {a} {things} and gives away {b}. How many are left? Explain each step.
        A box holds {b} {things}. How many {things} are in {a} such boxes?
        {who} buys {b} {things} at {a} cents each. What does it cost in total?
        {who} shares {a} {things} equally among {b} friends. How many does each get, and how many remain?
        """,
        {
            "who": "Maria | Mr Chen",
            "a": "17 | 24 | 45",
            "b": "3 | 5 | 8",
            "things": "apples | marbles | stickers | pencils",
        },
    ),
    (
        """A train travels at {v} kilometres per hour for {t} hours. How far does it go?
        A tap fills {v} litres in {t} minutes. How much does it fill in one minute?
        A shop takes {t} percent off a coat that costs {v} dollars. What is the new price?
        What is {v} times {t}? Show how you work it out.
        What is {v} plus {t}, and what is {v} minus {t}?
        """,
        {
            "v": "40 | 60 | 75 | 80 | 90 | 120",
            "t": "2 | 4 | 5 | 6 | 10 | 15",
        },
    ),
    (
        """I {x}. What should I do?
        I {x}. Can you give me three pieces of advice?
        My friend says: "I {x}." How can I help?
        I {x}. What would you ask me first?
        I {x}. Is that normal?
        I {x}. Help me make a small plan for this week.
        """,
        {
            "x": (
                "cannot fall asleep before midnight | have too many tasks for one day | feel nervous before "
                "presentations | keep losing my keys | want to drink less coffee | spend too much time on my phone | "
                "find it hard to make new friends | had an argument with my brother | forgot an important birthday | "
                "do not know what to study | want to change my career | find mathematics difficult | keep putting off "
                "my homework | want to eat more vegetables | have a noisy neighbour | am moving to another country | "
                "am starting a new job on Monday | want to save a hundred dollars a month | want to spend less time "
                "indoors | have to say no to a colleague | am bored at the weekend | would like to write a novel | "
                "want to get up earlier | have lost interest in my hobby | made a mistake at work | need a cheap "
                "present for a friend | have only twenty minutes to cook dinner | want to read the news without "
                "stress | am afraid of flying | cannot decide between two job offers"
            ),
        },
    ),
    (
        """Write a short dialogue between {who} about {x}.
        Write a funny conversation between {who} about {x}.
        """,
        {
            "who": (
                "a cat and a dog | a teacher and a student | a waiter and a guest | two astronauts | a grandfather "
                "and his granddaughter | a doctor and a patient | a robot and its inventor | two old friends | a "
                "shopkeeper and a customer"
            ),
            "x": (
                "the weather | a lost umbrella | the best breakfast | a broken clock | a trip to the mountains | a "
                "surprise party | learning to cook | a mysterious noise | the future | a very small house | a missed "
                "bus | what makes people happy"
            ),
        },
    ),
    (
        """Summarise this in one sentence: {x}
        Rewrite this in simpler words: {x}
        Rewrite this in a more formal tone: {x}
        Suggest a headline for this text: {x}
        Turn this into a list of bullet points: {x}
        Write one question that this text answers: {x}
        Continue this text with two more sentences: {x}
        """,
        {
            "x": (
                "The town council decided on Tuesday to plant two hundred trees along the main road. Shade should "
                "cool the street in summer, and residents may each adopt a tree. | Our bakery opens at six every "
                "morning. On Sundays we only sell bread, and the coffee machine stays off until a new part arrives. | "
                "Bees visit many flowers in a day. As they drink nectar, pollen sticks to their legs and is carried "
                "to the next plant, which can then make seeds. | The museum will close for three months so that the "
                "roof can be repaired. Tickets that were already bought stay valid until the end of next year. | Lena "
                "missed the last bus and walked home through the rain. On the way she met her old teacher, who lent "
                "her an umbrella and told her about his garden. | Most people sleep better in a cool, dark room. "
                "Screens should be switched off an hour before bed, and coffee is best avoided after lunch. | The new "
                "ferry carries forty cars and runs on batteries. A crossing takes half an hour, and the ship charges "
                "while passengers come on board. | Glass can be melted and shaped again and again. That is why "
                "bottles are collected, sorted by colour, crushed and sent to a furnace. | We tested the game with "
                "thirty children. They liked the music and the puzzles, but many found the last level too long and "
                "gave up. | A small river once ran through the centre of the city. It was covered a century ago, and "
                "now people want to bring it back to the surface. | The team lost its first four matches. Then a new "
                "goalkeeper joined, training moved to the evening, and they won the next six. | Salt was once so "
                "valuable that cities were built on its trade. Today it is cheap, and we worry about eating too much "
                "of it. | Please leave the kitchen as you found it. Wash your cups, wipe the table, and write your "
                "name on anything you put into the fridge. | Octopuses have three hearts and blue blood. They can "
                "change colour in less than a second and squeeze through very small gaps. | The course has eight "
                "lessons of one hour. Each lesson ends with an exercise, and anyone who hands in six of them receives "
                "a certificate. | Grandfather's watch had stopped at ten past four. Nobody knew how to open it until "
                "a visitor noticed a tiny screw under the strap."
            ),
        },
    ),
    (
        """What is the capital of {x}?
        Tell me three interesting facts about {x}.
        What should a visitor see in {x}?
        What do people like to eat in {x}?
        Describe {x} in one short paragraph.
        What is the weather like in {x}?
        Plan three days in {x} for me.
        """,
        {
            "x": (
                "Japan | Brazil | Egypt | Canada | Kenya | Norway | Italy | India | Peru | Greece | Morocco | Vietnam "
                "| Portugal | Australia | Mexico | Turkey | Poland | Thailand | Ireland | Chile | Spain | South Korea "
                "| Finland | Argentina | New Zealand | Germany | Austria | Ghana | Iceland | Cuba | Indonesia | Nepal"
            ),
        },
    ),
    (
        """What do {x} eat?
        Where do {x} live?
        Tell me something surprising about {x}.
        How do {x} raise their young?
        Explain to a child what makes {x} special.
        Would {x} make good pets? Why or why not?
        Write a fable in which {x} teach us a lesson.
        How do {x} protect themselves?
        """,
        {
            "x": (
                "owls | dolphins | elephants | penguins | bats | ants | wolves | octopuses | giraffes | hedgehogs | "
                "turtles | spiders | kangaroos | parrots | squirrels | sharks | camels | frogs | butterflies | polar "
                "bears | horses | bees | crows | otters | snails"
            ),
        },
    ),
    (
        """Who was {x}?
        What is {x} known for?
        Write three sentences about the life of {x}.
        What could we still learn from {x} today?
        Imagine an interview with {x}. Write two questions and answers.
        When and where did {x} live?
        """,
        {
            "x": (
                "Marie Curie | Isaac Newton | Leonardo da Vinci | Ada Lovelace | Charles Darwin | Cleopatra | "
                "Aristotle | Galileo Galilei | Florence Nightingale | Nelson Mandela | Mahatma Gandhi | Albert "
                "Einstein | Jane Austen | William Shakespeare | Ludwig van Beethoven | Frida Kahlo | Vincent van Gogh "
                "| Alan Turing | Rosa Parks | Marco Polo | Amelia Earhart | Nikola Tesla | Johannes Gutenberg | "
                "Confucius | Rachel Carson"
            ),
        },
    ),
    (
        """Why {x}?
        A child asks: why {x}? Give a short, clear answer.
        Why {x}? Answer in one sentence.
        Why {x}, and how did people explain it in the past?
        I always wondered: why {x}?
        """,
        {
            "x": (
                "do leaves change colour in autumn | does ice float on water | do we dream | do cats purr | is the "
                "sea salty | do we yawn | does the moon change its shape | do onions make us cry | do stars twinkle | "
                "does bread rise | do we have leap years | do birds fly south | does metal feel colder than wood | do "
                "we need sleep | does thunder come after lightning | do people laugh | does time seem to pass faster "
                "as we get older | do zebras have stripes | does popcorn pop | do we get goosebumps"
            ),
        },
    ),
    (
        """Use the word "{x}" in three different sentences.
        What does the word "{x}" mean?
        Give me two synonyms and one opposite of "{x}".
        Write a short paragraph that begins with the word "{x}".
        Explain the word "{x}" to someone who is learning English.
        """,
        {
            "x": (
                "careful | ancient | generous | curious | fragile | silent | brave | ordinary | bright | patient | "
                "distant | sudden | honest | gentle | crowded | narrow | cheerful | clever | reluctant | steady | "
                "familiar | remarkable | useful | empty"
            ),
        },
    ),
    (
        """Plan {x} for me.
        Suggest a simple schedule for {x}.
        What would you put on the list for {x}?
        How much time and money should I allow for {x}?
        Write a short invitation or announcement for {x}.
        What could go wrong with {x}, and how do I prepare?
        """,
        {
            "x": (
                "a quiet weekend at home | a picnic for six people | a day in the mountains | a week of cheap dinners "
                "| a children's birthday | a spring clean of a small flat | a month of learning chess | a farewell "
                "party | a school trip to a farm | a first visit to a gym | a reading club | a vegetable garden on a "
                "balcony | an evening of board games | a two-day cycling tour | a family reunion | a small art "
                "exhibition | a charity run | a first aid course at work"
            ),
        },
    ),
    (
        """Should {x}? Give one argument for and one against.
        Should {x}? Explain both views in a few sentences.
        Write the opening of a debate speech on this question: should {x}?
        Should {x}? Answer as a friendly teacher would.
        Write three survey questions about this: should {x}?
        """,
        {
            "x": (
                "schools start later in the morning | every child learn an instrument | city centres be free of cars "
                "| homework be abolished | phones be banned in class | everyone learn to program | museums be free | "
                "shops close on Sundays | people work four days a week | voting be compulsory | zoos be closed | "
                "plastic bags be forbidden | children have their own pocket money | pets be allowed at work | public "
                "transport be free | students wear uniforms | tips be included in the price | every town have a "
                "public garden"
            ),
        },
    ),
]
