"""The code that decides what a program makes: the program and all library files that it imports.

A rule has the hash of its program's code as a parameter, so that Snakemake makes its outputs again
when that code changes. Comments, docstrings and layout are not part of the hash. The hashes are
kept in a file, because parsing the library takes longer than the start of a dry run.
"""

import ast
import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from portllm.storage import files

PREFIX = "code "
"""Start of the parameter, by which people and `snakemake plan` know it."""
KEPT_IN = Path(".snakemake/portllm_code.json")


class ProgramCode:
    """The programs of `workflow_scripts` and the library files that each of them imports."""

    def __init__(self, scripts: Path, kept_in: Path | None = None) -> None:
        """Look at no file yet.

        Args:
            scripts: the directory that holds the programs and the package `portllm`.
            kept_in: a JSON file that keeps the hashes until a file changes.
        """
        self._scripts, self._kept_in = scripts.absolute(), kept_in
        self._keys: dict[str, str] = {}
        self._imported: dict[Path, list[Path]] = {}
        self._hashes: dict[Path, str] = {}

    def files(self, *starts: str) -> list[Path]:
        """List the given files and every library file that they import, directly or not.

        Imports inside functions, relative imports and re-exports in `__init__.py` are followed.

        Returns:
            Sorted paths relative to `scripts`.
        """
        found: set[Path] = set()
        pending = list(map(Path, starts))
        while pending:
            path = pending.pop()
            if path not in found:
                found.add(path)
                if path not in self._imported:
                    self._imported[path] = list(self._imports(path))
                pending += self._imported[path]
        return sorted(found)

    def key(self, *starts: str) -> str:
        """Hash the code of the given files and of what they import."""
        name = " ".join(starts)
        if name not in self._keys:
            self._keys |= self._kept()
        if name not in self._keys:
            digest = hashlib.sha256()
            for path in self.files(*starts):
                digest.update(f"{path}\0{self._hash(path)}\0".encode())
            self._keys[name] = digest.hexdigest()[:16]
            self._keep()
        return self._keys[name]

    def parameter(self, *starts: str) -> str:
        """Return the key as a rule's parameter."""
        return PREFIX + self.key(*starts)

    def _imports(self, path: Path) -> Iterator[Path]:
        package = path.parent.parts
        yield from self._modules(list(package))
        for node in ast.walk(self._trees[path]):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield from self._modules(alias.name.split("."))
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) + 1 - node.level] if node.level else ()
                module = [*above, *(node.module.split(".") if node.module else ())]
                for alias in node.names:
                    yield from self._modules([*module, alias.name])

    def _modules(self, parts: list[str]) -> Iterator[Path]:
        """Yield the files that are executed when a dotted name is imported; none elsewhere."""
        for count in range(1, len(parts) + 1):
            package = Path(*parts[:count])
            for path in (package / "__init__.py", package.with_suffix(".py")):
                if path in self._trees:
                    yield path

    @cached_property
    def _texts(self) -> dict[Path, bytes]:
        paths = sorted(self._scripts.rglob("*.py"))
        return {path.relative_to(self._scripts): path.read_bytes() for path in paths}

    @cached_property
    def _trees(self) -> dict[Path, ast.Module]:
        return {path: ast.parse(text) for path, text in self._texts.items()}

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            code = ast.dump(_without_docstrings(self._trees[path]))
            self._hashes[path] = hashlib.sha256(code.encode()).hexdigest()
        return self._hashes[path]

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for path, text in self._texts.items():
            digest.update(f"{path}\0{len(text)}\0".encode() + text)
        return digest.hexdigest()

    def _kept(self) -> dict[str, str]:
        if self._kept_in is None:
            return {}
        try:
            kept = json.loads(self._kept_in.read_text())
            return dict(kept["keys"]) if kept["digest"] == self._digest else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _keep(self) -> None:
        if self._kept_in is not None and self._kept_in.parent.is_dir():
            files.write_json(self._kept_in, {"digest": self._digest, "keys": self._keys})


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """Remove strings that stand alone, which are docstrings."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):  # not that of a lambda
            body[:] = [statement for statement in body if not _is_text(statement)]
    return tree


def _is_text(statement: ast.AST) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
