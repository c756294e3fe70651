"""What a visit costs its reader: bytes on the wire until the page is idle, layout shift, blocked time."""

from collections import Counter
from urllib.parse import urlsplit

from playwright.sync_api import Page

# Before the page's own scripts. Shifts within half a second of a click do not count, as everywhere (`hadRecentInput`).
WATCH = """
window.visit = { shift: 0, shifted: [], blocked: 0 };
new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) {
        if (entry.hadRecentInput) continue;
        window.visit.shift += entry.value;
        const node = entry.sources[0]?.node;
        window.visit.shifted.push([entry.value.toFixed(4), node?.id || node?.className || node?.nodeName]);
    }
}).observe({ type: "layout-shift", buffered: true });
new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) window.visit.blocked += Math.max(0, entry.duration - 50);
}).observe({ type: "longtask", buffered: true });
"""
OURS = ("/lora-drop-js/", "/gradio_api/file=")
STREAM = "queue/data"  # in the address of a run's events


class Visit:
    """Counts what a page fetches; made before the page goes anywhere."""

    def __init__(self, page: Page):
        self.page = page
        self.bytes: Counter[str] = Counter()  # as sent, compressed or not, by whose they are
        self.urls: dict[str, str] = {}
        page.add_init_script(WATCH)
        cdp = page.context.new_cdp_session(page)
        cdp.send("Network.enable")
        cdp.send("Network.setCacheDisabled", {"cacheDisabled": True})
        cdp.on("Network.requestWillBeSent", lambda e: self.urls.update({e["requestId"]: e["request"]["url"]}))
        cdp.on("Network.loadingFinished", lambda e: self._add(e, int(e["encodedDataLength"])))
        cdp.on("Network.dataReceived", self._came)

    def _came(self, event: dict) -> None:
        """A part of something; a stream of events, which the page ends itself, is never reported as finished."""
        if STREAM in self.urls.get(event["requestId"], ""):
            self._add(event, event["dataLength"])

    def _add(self, event: dict, count: int) -> None:
        self.bytes[whose(self.urls.get(event["requestId"], ""))] += count

    def wait_idle(self) -> None:
        """Until nothing has come for a second; Gradio's stream of heartbeats never ends."""
        before = None
        while before != (before := sum(self.bytes.values())) or not before:
            self.page.wait_for_timeout(1000)

    @property
    def shift(self) -> float:
        """The sum of all layout shifts so far."""
        return self.page.evaluate("window.visit.shift")

    @property
    def blocked(self) -> float:
        """Milliseconds beyond 50 of all long tasks so far."""
        return self.page.evaluate("window.visit.blocked")


def whose(url: str) -> str:
    """`plotly`, `ours` or `gradio`: who made what is at an address."""
    path = urlsplit(url).path
    if "plotly" in path:
        return "plotly"
    return "ours" if any(mark in path for mark in OURS) else "gradio"


def streamed_bytes(page: Page) -> list[int]:
    """The length of each part of the runs' events that comes from now on."""
    received: list[int] = []
    streams: set[str] = set()
    cdp = page.context.new_cdp_session(page)
    cdp.send("Network.enable")
    cdp.on("Network.requestWillBeSent", lambda e: STREAM in e["request"]["url"] and streams.add(e["requestId"]))
    cdp.on("Network.dataReceived", lambda e: e["requestId"] in streams and received.append(e["dataLength"]))
    return received
