"""What a speaker takes home: pictures at 1x and 2x, transparent or not, and the race as a film that plays anywhere."""

import itertools
from pathlib import Path
from xml.etree import ElementTree

import numpy
import pytest
from PIL import Image, ImageSequence
from playwright.sync_api import Page, expect

from lora_drop.run.exports.colors import COLORS
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import write_line
from lora_drop.run.trace.trace import Trace, gather
from tests.support.page import CONFIG, open_menu, save, wait_done

pytestmark = [pytest.mark.browser, pytest.mark.full]

READING_MS, TOKEN_MS = 8000, 62.5  # of assets/js/pace.js: the slowest lane takes no longer than either says
FRAME_MS, HELD_MS = 80, 2500


@pytest.fixture(scope="module")
def trace(tiny) -> Trace:
    return gather(run(tiny, Request("Why is the sky blue?", CONFIG, 40, ignore_eos=True, compare="skip")))


def opened(server, open_page, trace: Trace, folder: Path) -> Page:
    path = folder / "run.jsonl"
    path.write_text("".join(map(write_line, trace.records())), encoding="utf-8")
    page = open_page(server.url)
    page.set_input_files("input[type=file]", path)
    expect(page.locator(".ld-status").first).to_contain_text("Opened run.jsonl")
    wait_done(page)
    return page


@pytest.mark.parametrize("where", ["opened", "replayed"])
def test_the_race_is_a_film_of_the_trace(server, open_page, open_replay, trace, tmp_path, where):
    page = opened(server, open_page, trace, tmp_path) if where == "opened" else open_replay(trace)
    page.wait_for_selector(".ld-live[data-state='done']")
    film = Image.open(save(page, "film", tmp_path))
    assert film.format == "GIF" and film.size == (1280, 720) and film.info["loop"] == 0
    clocks = [trace.clock(lane) for lane in trace.steps]
    slowest = max(clock[-1] for clock in clocks)
    shown = max(min(READING_MS, 39 * TOKEN_MS), slowest)
    frames = [(frame.info["duration"], numpy.array(frame.convert("RGB"))) for frame in ImageSequence.Iterator(film)]
    assert [ms for ms, _ in frames[-2:]] == [FRAME_MS, HELD_MS]
    assert sum(ms for ms, _ in frames) - HELD_MS == pytest.approx(shown, abs=FRAME_MS)
    pictures = [picture for _, picture in frames]
    assert all((one != other).any() for one, other in itertools.pairwise(pictures)), "each frame goes on"
    ends = [whole for _, whole in lengths(pictures[-1], trace)]
    assert max(ends) - min(ends) <= 2, "all have written as many tokens; a film has few colours"
    end = max(ends)
    unit = end / 40
    assert [solid for solid, _ in lengths(pictures[0], trace)] == pytest.approx([unit] * 3, abs=2), "prefill's token"
    half = len(pictures) // 2
    moments = {half: half * FRAME_MS * slowest / shown, -1: min(clock[-1] for clock in clocks[:2])}
    for at, moment in moments.items():  # at the end, where each lane was when the full model or LoRA-Drop had finished
        tokens = [1 + sum(ms <= moment for ms in clock) for clock in clocks]
        solid = [solid for solid, _ in lengths(pictures[at], trace)]
        assert solid == pytest.approx([count * unit for count in tokens], abs=unit + 2)


def lengths(picture: numpy.ndarray, trace: Trace) -> list[tuple[int, int]]:
    """Pixels of its colour in each lane's bar: in most of its rows, and in the row that has most."""
    bars = []
    for name in ("baseline", "lora-drop", "third")[: len(trace.steps)]:
        rgb = [int(COLORS["light"][name][i : i + 2], 16) for i in (1, 3, 5)]
        rows = (picture[:, 290:] == rgb).all(axis=2).sum(axis=1)
        bars.append((int(numpy.bincount(rows[rows > 0]).argmax()), int(rows.max())))
    return bars


def test_pictures_come_once_or_twice_as_large_with_or_without_a_background(server, open_page, trace, tmp_path):
    page = opened(server, open_page, trace, tmp_path)
    page.click(".ld-menu summary")
    charts = page.eval_on_selector_all(".ld-picture option", "all => all.map(one => one.value)")
    assert set(charts) == {"whole", "race", "activity", "drift", "kv", "drift-map", "time", "kl"}
    for what in charts:
        width, height = (1600, 900) if what == "whole" else (1280, 720)
        for scale, clear in (("1", True), ("2", False)) if what in ("whole", "race") else (("1", True),):
            open_menu(page)
            page.select_option(".ld-picture", what)
            page.select_option(".ld-picture-scale", scale)
            page.set_checked(".ld-picture-clear", clear)
            size = (int(scale) * width, int(scale) * height)
            picture = Image.open(save(page, "png", tmp_path)).convert("RGBA")
            assert picture.size == size
            corners = [picture.getpixel((x, y))[3] for x in (0, size[0] - 1) for y in (0, size[1] - 1)]
            assert corners == [0 if clear else 255] * 4, (what, scale)
            assert picture.getextrema()[3][1] == 255, "it is not empty"
            root = ElementTree.parse(save(page, "svg", tmp_path)).getroot()
            assert (int(root.get("width")), int(root.get("height"))) == size
            assert root.get("viewBox") == f"0 0 {width} {height}"
