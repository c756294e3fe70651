"""Pictures of a run: exact sizes, an SVG that every program reads, and nothing of the page moved by drawing them."""

import base64
import functools
import io
import re
from xml.etree import ElementTree

import pytest
from PIL import Image
from playwright.sync_api import Error, Page

from lora_drop.run.exports.colors import COLORS
from lora_drop.run.report.report import Report
from lora_drop.run.report.verdict import conclusions
from lora_drop.run.trace.records import BASELINE, LORA_DROP, THIRD
from lora_drop.run.trace.trace import gather
from tests.support.made import audit, header, step, summary
from tests.support.page import HOSTILE, pane_text, prepare_and_run, run_to_end, wait_still
from tests.support.runs import hostile_run

pytestmark = [pytest.mark.browser, pytest.mark.full]

SVG = "{http://www.w3.org/2000/svg}"
TALL = {"width": 1600, "height": 1400}  # charts are drawn once they are in sight
LINK = "{http://www.w3.org/1999/xlink}href"
DRAW = """async ([what, options]) => {
    const root = document.querySelector(".ld-live");
    const { pictures } = window.LoraDrop;
    const blob = what === "whole"
        ? await pictures.whole(root, root.loraDropRun, options)
        : await pictures.chart(root.querySelector(`[data-chart="${what}"]`), options);
    const address = await new Promise((done) => {
        const reader = new FileReader();
        reader.onload = () => done(reader.result);
        reader.readAsDataURL(blob);
    });
    return [blob.type, address.split(",")[1]];
}"""


def draw(page: Page, what: str, format: str, scale: float = 1) -> bytes:
    kind, content = page.evaluate(DRAW, [what, {"format": format, "scale": scale, "transparent": False}])
    assert kind == {"svg": "image/svg+xml", "png": "image/png"}[format]
    return base64.b64decode(content)


def png(page: Page, what: str, scale: float = 1) -> Image.Image:
    return Image.open(io.BytesIO(draw(page, what, "png", scale)))


def parsed(svg: bytes) -> ElementTree.Element:
    """The picture, once it is clear that it is one file that needs nothing else."""
    text = svg.decode()
    assert "var(" not in text and "foreignObject" not in text and "<script" not in text
    root = ElementTree.fromstring(text)
    for element in root.iter():
        for name, value in element.attrib.items():
            assert not name.startswith("on")
            assert "url(" not in value or "url(#" in value, value
        assert element.get(LINK, "data:image/png;").startswith(("data:image/png;", "#"))
        assert element.get("href") is None
    return root


def words(root: ElementTree.Element) -> str:
    """All that is written, without the spaces: a line's end takes one away."""
    return "".join("".join(root.itertext()).split())


def boxes(page: Page, svg: bytes) -> list[list[float]]:
    """Where the browser puts each text of the picture itself, its plots left out: x, y, width, height."""
    return page.evaluate(
        """(text) => {
            const svg = new DOMParser().parseFromString(text, "image/svg+xml").documentElement;
            const shown = document.body.appendChild(document.importNode(svg, true));
            const own = [...shown.querySelectorAll("text")].filter((one) => one.ownerSVGElement === shown);
            const found = own.map((one) => one.getBBox()).map(({ x, y, width, height }) => [x, y, width, height]);
            shown.remove();
            return found;
        }""",
        svg.decode(),
    )


def no_overlaps(found: list[list[float]]) -> None:
    for i, (x, y, width, height) in enumerate(found):
        assert x >= 0 and y >= 0 and x + width <= 1600 and y + height <= 900
        for left, top, wide, high in found[i + 1 :]:
            across = min(x + width, left + wide) - max(x, left)
            down = min(y + height, top + high) - max(y, top)
            assert across < 3 or down < 0.35 * min(height, high), "two texts overlap"


def finished(server, open_page, tokens: int = 40, **options) -> Page:
    page = open_page(server.url, **{"viewport": TALL} | options)
    prepare_and_run(page, tokens)
    return page


def test_pictures_have_their_exact_size_and_hold_what_ran(server, open_page):
    page = finished(server, open_page)
    trace = gather(server.runs[-1])
    for what, scale, size in (
        ("whole", 3, (4800, 2700)),
        ("whole", 1, (1600, 900)),
        ("activity", 3, (3840, 2160)),
        ("kv", 1.001, (1281, 721)),  # 1281.28 and 720.72 are rounded
    ):
        assert png(page, what, scale).size == size

    root = parsed(draw(page, "whole", format="svg"))
    assert (root.get("width"), root.get("height"), root.get("viewBox")) == ("1600", "900", "0 0 1600 900")
    written = words(root)
    summary = trace.summary
    glance = conclusions(Report.of(trace))["verdict"]
    assert glance["figures"]
    for text in (
        "Layer activity", "Drift from full model", "KV memory", "step", "refreshed", "full step (all layers ran)",
        "full step every 4 tokens", "4 of 6 layers skipped", "residual rule", "no corrections", "greedy",
        *(figure[part] for figure in glance["figures"] for part in ("value", "label")),
        f"{100 * summary.kv_saved:.1f}%",
    ):  # fmt: skip
        assert "".join(text.split()) in written, text
    lines = ["".join(line.itertext()) for line in root.iter(f"{SVG}text")]
    speeds = [float(found[1].replace(",", "")) for line in lines if (found := re.search(r"([\d,.]+) tokens/s", line))]
    # One decimal of two that the page was sent: rounded twice.
    assert speeds == pytest.approx([lane["tokens_per_second"] for lane in summary.lanes.values()], abs=0.056)
    fills = {element.get("fill") for element in root.iter(f"{SVG}rect")}
    assert COLORS["light"]["page"] in fills
    full = [len(group.findall(f"{SVG}rect")) for group in root.findall(f"{SVG}g") if group.get("font-size")]
    assert full[0] == 0 and full[1] > 0, "full steps are marked where others skip layers"
    marks = [e for e in root.iter(f"{SVG}rect") if e.get("stroke") == COLORS["light"]["diverged"]]
    assert len(marks) == 2, "one in each lane"
    assert len(root.findall(f".//{SVG}svg")) >= 3, "the plots are nested"

    for chart, title in (("activity", "Layer activity"), ("drift", "Drift from full model"), ("kv", "KV memory")):
        root = parsed(draw(page, chart, format="svg"))
        assert (root.get("width"), root.get("height")) == ("1280", "720")
        assert "".join(title.split()) in words(root)
        legend = page.locator(f"[data-chart={chart}] .ld-legend li:visible").all_inner_texts()
        assert legend and all("".join(name.split()) in words(root) for name in legend)
    page.evaluate("document.querySelector('[data-chart=kv]').dataset.equal = 'true'")  # lanes with the same K/V
    root = parsed(draw(page, "kv", format="svg"))
    assert "".join(page.locator(".ld-equal").inner_text().split()) in words(root)
    assert not root.findall(f".//{SVG}svg"), "no plot"


def test_drawing_moves_nothing_on_the_page(server, open_page):
    page = finished(server, open_page)
    plot = "document.querySelector('[data-chart=drift] .ld-plot')"
    page.evaluate(f"Plotly.relayout({plot}, {{'xaxis.range': [5, 15]}})")
    state = f"""() => JSON.stringify([
        {plot}.layout, {plot}.data, document.querySelectorAll("body *").length,
        document.documentElement.scrollWidth, window.scrollY])"""
    before = page.evaluate(state)
    zoomed = draw(page, "drift", format="svg")
    draw(page, "whole", format="png")
    assert page.evaluate(state) == before
    ticks = [float(e.text) for e in parsed(zoomed).iter(f"{SVG}text") if e.text and e.text.strip().isdigit()]
    assert 10 in ticks and 30 not in ticks, "the picture shows what the reader zoomed to"


@pytest.mark.parametrize("dark", [False, True])
def test_both_themes_fill_the_picture_and_nothing_overlaps(server, open_page, dark):
    page = finished(server, open_page, tokens=220)
    if dark:
        page.evaluate("document.body.classList.add('dark')")
        wait_still(page)
    colors = COLORS["dark" if dark else "light"]
    picture = png(page, "whole")
    page_color = tuple(int(colors["page"][i : i + 2], 16) for i in (1, 3, 5))
    assert [picture.convert("RGBA").getpixel(at) for at in ((0, 0), (1599, 899))] == [(*page_color, 255)] * 2
    svg = draw(page, "whole", format="svg")
    root = parsed(svg)
    assert colors["ink"] in {element.get("fill") for element in root.iter()}
    no_overlaps(boxes(page, svg))


def test_hostile_texts_stay_text_on_the_page_and_in_its_picture(server, open_page):
    server.script = hostile_run
    page = open_page(server.url)
    page.fill("#ld-prompt textarea", HOSTILE)
    run_to_end(page)
    assert page.locator(".ld-pane[data-lane='0'] .ld-token").first.text_content() == HOSTILE
    assert "<script>alert(3)</script>" in pane_text(page, 1)
    page.hover(".ld-pane[data-lane='1'] .ld-token-lora >> nth=0")
    assert "onerror=alert(2)" in page.inner_text(".ld-tip")
    assert page.locator(".ld-live img, .ld-live script").count() == 0
    svg = draw(page, "whole", format="svg")
    written = words(parsed(svg))
    assert written.count("<imgsrc=xonerror=alert(2)>") >= 2 and "</script><script>alert(3)</script>" in written
    assert "\ufffd" in written and "{{this}}" in written
    assert png(page, "whole").size == (1600, 900)


def _odd_run(lanes: int, texts: list[str], is_audited: bool):
    """Lanes of these texts, each a token, with the later lanes turning off at token 3 and the third earlier."""
    names = (BASELINE, LORA_DROP, THIRD)[:lanes]
    device = {"name": "A device with quite a long name " * 4, "type": "cpu"}
    odd = header(
        third={} if lanes == 3 else None, prompt="A long prompt. " * 30, device=device, sampling={"notes": []}
    )
    odd.lanes[-1]["label"] = "Adapters off: a long note that is not its name"
    odd.model["id"] = "some-organisation/" + "a-model-with-a-long-name-" * 3
    yield odd
    for number, text in enumerate(texts):
        for i, name in enumerate(names):
            kind = "prefill" if number == 0 else "lora" if i and number % 2 else "refresh"
            token = 1000 * i + number if i and number >= 4 - i else number
            yield step(name, number, kind, 1.0, text=text, token_id=token)
        if number and is_audited:
            yield audit(number, drift=[0.1, 0.2], kl=0.1, argmax_text=text)
    own = {"tokens": len(texts), "prefill_ms": 1.0, "kv_bytes": 1}
    yield summary(names, own, speedup=1.0, bound=1.1, kv_saved=0.1, first_divergence=3, top1_agreement=1.0)


TEXTS = {
    "words": ["Some", " words", " of", " a", " text", ".", "\n", "\n"] * 60,
    "breaks": ["\n", "\r\n", "\t", "\n", "\u2028", " ", "\n"],
    "no spaces": ["W" * 40] * 30,
    "spaces": ["x", " " * 900, "y", "\u3000", "z", "!"],
    "scripts": [
        "\u65e5\u672c\u8a9e" * 20,
        "\u202e",
        "\u0645\u0631\u062d\u0628\u0627",
        "\U0001f469\u200d\U0001f4bb" * 9,
    ]
    * 9,
    "nothing": [""] * 9,
}


@pytest.mark.parametrize("lanes", [2, 3])
def test_any_text_in_two_or_three_lanes_stays_in_its_pane(server, open_page, lanes):
    page = open_page(server.url)
    for texts in TEXTS:
        server.script = functools.partial(_odd_run, lanes, TEXTS[texts], texts != "words")
        run_to_end(page)
        for chart in ("activity", "drift", "kv"):  # drawn once they are in sight
            page.locator(f"[data-chart={chart}]").scroll_into_view_if_needed()
        wait_still(page)
        svg = draw(page, "whole", format="svg")
        no_overlaps(boxes(page, svg))
        stays_in_its_pane(parsed(svg), lanes, texts)


def stays_in_its_pane(root: ElementTree.Element, lanes: int, texts: str) -> None:
    # The panes' texts are one group each; none of its texts or marks leaves the pane.
    groups = [group for group in root.findall(f"{SVG}g") if group.get("font-size")]
    assert len(groups) == lanes
    panes = [r for r in root.findall(f"{SVG}rect") if r.get("rx") == "10"][:lanes]
    ends = [float(pane.get("x")) + float(pane.get("width")) for pane in panes]
    for group, pane, end in zip(groups, panes, ends, strict=True):
        bottom = float(pane.get("y")) + float(pane.get("height"))
        for text in group.findall(f"{SVG}text"):
            x, y = float(text.get("x")), float(text.get("y"))
            assert float(pane.get("x")) < x < end and y < bottom, (text.text, x, y, pane.attrib)
    for line in (line for group in groups for line in group.findall(f"{SVG}rect")):
        assert any(end - float(line.get("x")) - float(line.get("width")) > 0 for end in ends)
    marks = [r for r in root.findall(f"{SVG}rect") if r.get("stroke") == COLORS["light"]["diverged"]]
    assert len(marks) >= lanes, "each lane's; a token in two lines has two"
    is_cut = any("…" in text for group in groups for text in group.itertext())
    assert is_cut == (texts in ("words", "no spaces", "scripts"))
    assert ("Nothing was measured here" in "".join(root.itertext())) == (texts == "words")


def test_for_too_many_pixels_there_is_one_clear_line(server, open_page):
    page = open_page(server.url, viewport=TALL)
    prepare_and_run(page, 8)
    with pytest.raises(Error, match="128000 x 72000 pixels are too many for this browser"):
        draw(page, "kv", "png", scale=100)
    assert png(page, "kv").size == (1280, 720)


def test_a_saved_picture_arrives_under_a_plain_name(server, open_page):
    page = open_page(server.url)
    for wanted, name in (
        ("lora-drop-kv.svg", "lora-drop-kv.svg"),
        ("../../etc/\u202epasswd<x>.png", "etc-passwd-x-.png"),
        ("...", "lora-drop.txt"),  # the browser adds what it finds inside
    ):
        with page.expect_download() as download:
            page.evaluate("(name) => LoraDrop.pictures.save(new Blob(['picture']), name)", wanted)
        assert download.value.suggested_filename == name
        assert download.value.path().read_bytes() == b"picture"
