"""The commands that texts tell a reader to type: of README, docs, cards, `--help` and error hints."""

import argparse
import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from lora_drop.cli.main import _parser
from lora_drop.ui.start import _parser as page_parser
from tests.support import ROOT

PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "Spaces.md",
        ROOT / "SECURITY.md",
        *ROOT.glob("docs/*.md"),
        *sorted(ROOT.glob("assets/**/README.md")),
    ]
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL, OTHER = ("bash", ""), ("python", "js", "json", "toml", "yaml", "text")
PROGRAMS = r"(?:python3?|lora-drop|pip|make|hf|curl|accelerate|docker|uv|npm)"
INLINE = re.compile(rf"`((?:[A-Z_]+=\S+ )*{PROGRAMS} [^`]+)`")
# A program's or a command's name alone, in a sentence about it.
NAME = re.compile(r"(python -m [\w.]+|lora-drop)( [a-z][\w-]*)?|(make|hf|pip|uv|npm|accelerate)( [a-z-]+){1,2}")


@dataclass(frozen=True)
class Command:
    """What a reader types, as bash reads it, and the text that says so."""

    text: str
    source: str


def lines_of(block: str) -> Iterator[str]:
    """The commands of a block, each with the variables of it that lines before it set."""
    variables = {}
    for line in block.replace("\\\n", " ").splitlines():
        if re.fullmatch(r'[A-Z]+=("[^"]*"|\S*)', line):
            variables[line.split("=")[0]] = f"{line}\n"
        elif line.strip() and not line.startswith("#"):
            yield "".join(text for name, text in variables.items() if f"${name}" in line) + line


def gathered() -> list[Command]:
    """Every command of a shell and every block of Python, in the order of the texts."""
    commands: dict[Command, None] = {}

    def inline(text: str, source: str) -> None:
        for span in INLINE.findall(re.sub(r"\s+", " ", text)):
            commands[Command(span, source)] = None

    for page in PAGES:
        text, name = page.read_text(encoding="utf-8"), str(page.relative_to(ROOT))
        for language, block in FENCE.findall(text):
            assert language in SHELL + OTHER, f"{name}: is ```{language} a shell's?"
            if language == "python":
                commands[Command(f"python - << 'END'\n{block}END", name)] = None
            for line in lines_of(block) if language in SHELL else ():
                commands[Command(line, name)] = None
        inline(FENCE.sub("", text), name)
    for name, parser in parsers().items():
        inline(parser.format_help(), f"--help of {name}")
    for path, text in strings():
        inline(text, path)
    return list(commands)


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    [commands] = [action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return {**commands.choices, "page": page_parser("lora_drop page")}


def strings() -> Iterator[tuple[str, str]]:
    """The texts of the program that a user may see: all its strings but docstrings, an f-string's gaps as `{}`."""
    for path in sorted((ROOT / "lora_drop").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs, parts = set(), set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                docs.add(node.value)
            if isinstance(node, ast.JoinedStr):
                parts.update(ast.walk(node)) if node not in parts else None
                yield (
                    str(path.relative_to(ROOT)),
                    "".join(str(one.value) if isinstance(one, ast.Constant) else "{}" for one in node.values),
                )
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docs | parts:
                yield str(path.relative_to(ROOT)), node.value
    for path in sorted((ROOT / "assets" / "js").rglob("*.js")):
        yield str(path.relative_to(ROOT)), re.sub(r"(?m)^\s*(//|/?\*).*$", "", path.read_text(encoding="utf-8"))
