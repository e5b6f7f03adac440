"""Draw texts of the package to read by themselves: messages with help lines, or docstrings of public functions.

python -m tests.docs.sample_texts messages --seed 251203 -n 60
python -m tests.docs.sample_texts docstrings --seed 251202 -n 30
"""

from __future__ import annotations

import argparse
import ast
import random
from collections.abc import Iterator
from typing import NamedTuple

from tests.docs.pages import REPOSITORY

ROOTS = ("maisi_aug", "integrations", "evaluation", "cli")
SAYING = {"append", "echo", "note", "notify", "print", "report", "say", "secho", "warn"}
"""Functions and methods whose text people read; most lists that texts are appended to are printed."""
LEAST = 25
"""Characters of a text that is more than a name."""


class Text(NamedTuple):
    """A text: its kind, where it is (``path:line``), and itself with values as ``{expression}``."""

    kind: str
    place: str
    words: str


def list_trees() -> Iterator[tuple[str, ast.Module]]:
    """Yield path and syntax tree of every module of the package; studies are no part of it."""
    for root in ROOTS:
        for path in sorted((REPOSITORY / root).rglob("*.py")):
            name = path.relative_to(REPOSITORY).as_posix()
            if "studies" not in path.parts and not name.startswith(tuple(f"maisi_aug/{one}/" for one in ROOTS)):
                yield name, ast.parse(path.read_text(encoding="utf-8"))


def list_messages() -> Iterator[Text]:
    """Yield the texts of errors, notes and printed lines, and the help of commands and options."""
    for name, tree in list_trees():
        for node in ast.walk(tree):
            place = f"{name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                yield from _keep("error", place, node.exc.args[0], least=LEAST)
            elif isinstance(node, ast.Call):
                spelt = ast.unparse(node.func).rpartition(".")[2]
                if spelt in SAYING and node.args:
                    yield from _keep(spelt, place, node.args[0], least=LEAST)
                for keyword in node.keywords:
                    if keyword.arg in ("help", "epilog"):
                        yield from _keep("help", place, keyword.value)
            elif isinstance(node, ast.Return) and node.value is not None:
                yield from (one for one in _keep("returned", place, node.value, least=40) if one.words.endswith("."))
            elif isinstance(node, ast.ClassDef):
                yield from list_options(node, name)
            elif isinstance(node, ast.FunctionDef) and name.startswith("cli/") and node.name.endswith("_command"):
                yield Text("command", place, ast.get_docstring(node) or "")


def list_options(node: ast.ClassDef, name: str) -> Iterator[Text]:
    """Yield the help lines of the options that a configuration defines."""
    if any(keyword.arg == "use_attribute_docstrings" for keyword in node.keywords):
        for field, text in zip(node.body, node.body[1:], strict=False):
            is_option = isinstance(field, ast.AnnAssign) and "Option(" in ast.unparse(field.annotation)
            if is_option and isinstance(text, ast.Expr):
                yield from _keep("option", f"{name}:{field.lineno}", text.value)


def list_docstrings() -> Iterator[Text]:
    """Yield signature and docstring of every public function and public method of a public class."""
    for name, tree in list_trees():
        for node in tree.body:
            inside = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else [node]
            for one in inside:
                if isinstance(one, ast.FunctionDef) and not one.name.startswith("_"):
                    owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
                    head = f"{owner}{one.name}({ast.unparse(one.args)})"
                    head += f" -> {ast.unparse(one.returns)}" if one.returns else ""
                    yield Text("docstring", f"{name}:{one.lineno}", f"{head}\n{ast.get_docstring(one) or ''}\n")


def _keep(kind: str, place: str, node: ast.expr, *, least: int = 1) -> Iterator[Text]:
    words = " ".join(_spell(node).split())
    if len(words) >= least and (" " in words or least == 1):
        yield Text(kind, place, words)


def _spell(node: ast.expr) -> str:
    """The text of an expression, with values in braces; empty if it is no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            f"{{{ast.unparse(one.value)}}}" if isinstance(one, ast.FormattedValue) else _spell(one)
            for one in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _spell(node.left) + _spell(node.right)
    return ""


KINDS = {"messages": list_messages, "docstrings": list_docstrings}


def main() -> None:
    """Print the texts that the arguments request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-n", type=int, default=30)
    options = parser.parse_args()
    texts = list(KINDS[options.kind]())
    print(f"{options.n} of {len(texts)} {options.kind}, seed {options.seed}")
    for text in random.Random(options.seed).sample(texts, options.n):
        print(f"- {text.place} | {text.kind} | {text.words}")


if __name__ == "__main__":
    main()
