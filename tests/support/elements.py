"""The elements of an HTML page, as a browser's parser takes it."""

from html.parser import HTMLParser


class Elements(HTMLParser):
    """What a page holds; a script ends at `</script` alone.

    Attributes:
        found: tags with their attributes, in order.
        scripts: the text of each script.
        text: all text outside scripts.
    """

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text += data
