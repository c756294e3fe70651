"""The house's imports, read from its files: who imports whom, wherever in a file it stands.

Imports in functions, under TYPE_CHECKING, and the text that `import_module` or `__import__` is given count too.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGE = "lora_drop"


@dataclass(frozen=True)
class Import:
    """One imported name: `importer` (a file's module), `target` ("torch", "lora_drop.run.run"), where it stands."""

    importer: str
    target: str
    where: str  # "lora_drop/run/run.py:12"
    at_start: bool  # it runs when the file is imported

    def __str__(self) -> str:
        return f"{self.where} imports {self.target}"


class House:
    """The modules of the package below a folder, and of the entry points beside it."""

    def __init__(self, root: Path):
        self.files: dict[str, Path] = {}
        self.root = root
        for path in sorted((root / PACKAGE).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            self.files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        if (root / "app.py").exists():
            self.files["app"] = root / "app.py"

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in self.files.items()}

    @cached_property
    def imports(self) -> list[Import]:
        return [found for name, tree in self.trees.items() for found in self._imports(name, tree, True)]

    def _imports(self, name: str, tree: ast.AST, at_start: bool) -> Iterator[Import]:
        for node in ast.iter_child_nodes(tree):
            where = f"{self.files[name].relative_to(self.root).as_posix()}:{getattr(node, 'lineno', 0)}"
            for target in self._targets(name, node):
                yield Import(name, target, where, at_start)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                for part, runs in ((node.body, False), (node.orelse, at_start)):
                    yield from self._imports(name, ast.Module(part, []), runs)
                continue
            inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from self._imports(name, node, at_start and not inside)

    def _targets(self, name: str, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name if self.files[name].name == "__init__.py" else name.rpartition(".")[0]
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in self.files or base not in self.files else base
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            if node.args and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)

    def inner(self) -> Iterator[Import]:
        """The imports of the house's own modules."""
        for found in self.imports:
            target = found.target
            while target and target not in self.files:  # a name of a module: the module
                target = target.rpartition(".")[0]
            if target and target != found.importer:
                yield Import(found.importer, target, found.where, found.at_start)

    def ways_to(self, library: str, start: str) -> list[str]:
        """The chain of files, each imported at the start of the one before, from `start` to one that imports it."""
        own: dict[str, set[str]] = {}
        for found in self.inner():
            if found.at_start:
                own.setdefault(found.importer, set()).add(found.target)
        direct = {i.importer for i in self.imports if i.at_start and i.target.split(".")[0] == library}
        chains, seen = [[start]], {start}
        for chain in chains:
            if chain[-1] in direct:
                return chain
            for target in sorted(own.get(chain[-1], set()) - seen):
                seen.add(target)
                chains.append([*chain, target])
        return []


def cycles(edges: set[tuple[str, str]]) -> list[list[str]]:
    """Groups that import each other in a circle, each sorted."""
    reach: dict[str, set[str]] = {}
    for one, other in edges:
        reach.setdefault(one, set()).add(other)
        reach.setdefault(other, set())

    def reached(start: str) -> set[str]:
        found, todo = set(), [start]
        while todo:
            for other in reach[todo.pop()] - found:
                found.add(other)
                todo.append(other)
        return found

    whole = {name: reached(name) for name in reach}
    groups = {tuple(sorted(b for b in whole[a] if a in whole[b])) for a in reach if a in whole[a]}
    return sorted(map(list, groups))
