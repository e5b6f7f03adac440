"""The documentation site: pages lie beside what they describe, and this file says which there are and in what order.

    pip install ".[docs]" && sphinx-build -W -c .docs . build/site

Nothing is fetched: fonts are the reader's own, the search index is part of the site.
"""

from __future__ import annotations

import inspect
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from docutils import nodes

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import maisi_aug  # noqa: E402
from maisi_aug.api.keywords import FIELDS_HEADING  # noqa: E402
from maisi_aug.cli.app import VERBS, load_verb  # noqa: E402

PAGES = {
    "Guides": {
        "recipes/guides/quick_start": "Quick start",
        "recipes/guides/few_cases": "Few cases",
        "recipes/guides/balance": "Balance a dataset",
        "recipes/guides/own_label": "Your own label",
        "recipes/guides/own_cts": "Lesions in your own CTs",
        "recipes/guides/cluster": "Many cases on a cluster",
        "recipes/guides/from_nvidia": "Coming from NVIDIA's scripts",
        "recipes/guides/stand_in": "Data to try the guides with",
        "recipes/guides/faq": "Questions",
    },
    "Background": {
        "maisi_aug/gates/README": "Sizes, gates and verdicts",
        "maisi_aug/cohort/README": "File formats",
        "integrations/README": "Integrations",
        "integrations/nvidia/README": "NVIDIA's scripts, option by option",
        "evaluation/README": "Evaluation",
        "evaluation/measured": "Measured",
        "maisi_aug/bundles/phantom_ct/README": "phantom-ct",
        "maisi_aug/bundles/lung_nodule_ct/README": "lung-nodule-ct",
    },
    "Reference": {
        "cli/tour": "A tour of the commands",
        "cli/README": "Commands",
        "recipes/README": "Recipes",
        "maisi_aug/api/README": "What is public",
        "maisi_aug/api/reference": "Python",
        "CHANGELOG": "Changes",
        ".github/CONTRIBUTING": "Contributing",
    },
}
NOTEBOOKS = "recipes/guides/notebooks"
STUDIES = "evaluation/studies"

MOST_SHOWN = 30
"""Parameters of a signature."""

project = "maisi-aug"
author = "The maisi-aug authors"
release = version = maisi_aug.__version__
root_doc = "README"
include_patterns = [
    "README.md",
    *(f"{page}.md" for pages in PAGES.values() for page in pages),
    f"{NOTEBOOKS}/*.ipynb",
    f"{STUDIES}/*.md",
]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
myst_enable_extensions = ["deflist", "linkify"]
myst_linkify_fuzzy_links = False
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks are committed with their outputs, and run by a test
copybutton_exclude = ".linenos, .gp, .go"
smartquotes_action = "qe"  # two hyphens begin an option; those that Sphinx writes as a dash: ``write_dashes``
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature shows them
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"maisi-aug {version}"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["static"]
html_css_files = ["wrap.css"]
html_extra_path = ["start"]  # index.html leads to the first page


def setup(app: Any) -> None:
    """Complete pages with what is not written by hand."""
    app.connect("source-read", complete_page)
    app.connect("autodoc-process-docstring", escape_stars)
    app.connect("autodoc-process-docstring", list_fields)
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("doctree-read", write_dashes)


def complete_page(app: Any, page: str, source: list[str]) -> None:
    """Add the table of contents to the first page, and the commands to theirs."""
    if page == root_doc:
        source[0] += "".join(write_toctree(caption, pages) for caption, pages in list_contents().items())
    if page == "cli/README":
        source[0] = source[0].replace("<!-- commands -->", "\n".join(describe_commands()))
    if page == "maisi_aug/api/reference":
        source[0] = source[0].replace("<!-- others -->", list_others(source[0]))


def list_others(written: str) -> str:
    """The public names that the page does not place itself."""
    others = [name for name in maisi_aug.__all__ if not re.search(rf":: {name}$", written, re.MULTILINE)]
    things = sorted(((name, getattr(maisi_aug, name)) for name in others), key=lambda one: inspect.ismodule(one[1]))
    rows = [document_public(name, thing) for name, thing in things]  # modules last: they become the current one
    head = "## More\n\n```{eval-rst}\n.. currentmodule:: maisi_aug\n\n"
    return head + "\n".join(rows) + "\n```\n" if rows else ""


def document_public(name: str, thing: Any) -> str:
    """The directive for a function, a class, or a module of functions."""
    if inspect.ismodule(thing):
        title = f"``{name}``"
        return f".. rubric:: {title}\n\n.. automodule:: {thing.__name__}\n   :members:\n"
    return f".. autoclass:: {name}\n   :members:\n" if inspect.isclass(thing) else f".. autofunction:: {name}\n"


def escape_stars(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Keep a star that stands for itself, as help texts of options have it, from opening emphasis."""
    lines[:] = [re.sub(r"(?<![*\\])\*(?![*\w])", r"\*", line) for line in lines]


def list_fields(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Make a list of the fields that ``takes_fields_of`` has added to a docstring; a section has its own."""
    if FIELDS_HEADING not in lines:
        return
    start = lines.index(FIELDS_HEADING) + 1
    listed, depth = [""], 0
    fields = list(itertools.takewhile(str.strip, lines[start:]))
    for line in fields:
        item = re.match(r"(?P<indent>(?: {4})+)(?P<name>\w+) \(", line)
        if item is None:
            listed.append("  " * (depth + 1) + line.strip())
            continue
        if (here := len(item["indent"]) // 4 - 1) != depth:
            listed.append("")
            depth = here
        listed.append("  " * depth + f"- **{item['name']}** ({line[item.end() :]}")
    lines[start : start + len(fields)] = [*listed, ""]


def write_dashes(app: Any, doctree: Any) -> None:
    """Write the two hyphens with which Sphinx separates a parameter from its description as a dash."""
    for node in list(doctree.findall(nodes.Text)):
        if node == " -- ":
            node.parent.replace(node, nodes.Text(" \N{EN DASH} "))


def shorten_signature(app: Any, what: str, name: str, thing: Any, *_: Any) -> tuple[str, str | None] | None:
    """The keywords that a function writes out and ``**fields``; those of a configuration have a list of their own."""
    if what not in ("function", "method") or len(inspect.signature(thing).parameters) <= MOST_SHOWN:
        return None
    code = inspect.unwrap(thing).__code__
    own = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    parameters = [one.replace(annotation=one.empty) for one in inspect.signature(thing).parameters.values()]
    shown = [one for one in parameters if one.name in own]
    fields = inspect.Parameter("fields", inspect.Parameter.VAR_KEYWORD)
    return str(inspect.Signature([*shown, fields])), None


def list_contents() -> dict[str, dict[str, str]]:
    """The pages with the notebooks and studies, whose titles are their own."""
    notebooks = sorted(path.stem for path in (REPOSITORY / NOTEBOOKS).glob("*.ipynb"))
    studies = sorted(path.stem for path in (REPOSITORY / STUDIES).glob("*.md"))
    return {
        "Guides": PAGES["Guides"],
        "Notebooks": {f"{NOTEBOOKS}/{name}": "" for name in notebooks},
        "Background": PAGES["Background"],
        "Reference": PAGES["Reference"],
        "Studies": {f"{STUDIES}/{name}": "" for name in studies},
    }


def write_toctree(caption: str, pages: dict[str, str]) -> str:
    """A hidden table of contents, which the side bar shows."""
    lines = [f"{title} </{page}>" if title else f"/{page}" for page, title in pages.items()]
    return "\n".join(["", "", "```{toctree}", ":hidden:", f":caption: {caption}", "", *lines, "```", ""])


def describe_commands() -> Iterator[str]:
    """Every command with its help and all its options, as Markdown."""
    for verb in VERBS:
        yield from describe_command(load_verb(verb), ["maisi-aug", verb])


def describe_command(command: Any, words: list[str]) -> Iterator[str]:
    """One command, or a group with its commands."""
    yield from ("", f"{'#' * len(words)} {' '.join(words)}", "")
    yield from map(write_paragraph, (command.help or "").split("\n\n"))
    for name, child in getattr(command, "commands", {}).items():
        yield from describe_command(child, [*words, name])
    if not hasattr(command, "commands"):
        yield from describe_parameters(command)


def write_paragraph(text: str) -> str:
    """A paragraph of help; an example becomes a block."""
    head, colon, example = text.partition("maisi-aug ")
    if re.fullmatch(r"(Examples?: *)?", head) and colon:
        return f"\n```sh\nmaisi-aug {example}\n```\n"
    return f"\n{escape(text)}\n"


def describe_parameters(command: Any) -> Iterator[str]:
    """Arguments and options by panel, each with its help."""
    panels: dict[str, list[str]] = {}
    for parameter in command.params:
        if not parameter.hidden and parameter.name != "help":
            is_argument = parameter.param_type_name == "argument"
            panel = parameter.rich_help_panel or ("Arguments" if is_argument else "Options")
            panels.setdefault(panel, []).append(describe_parameter(parameter, typer.Context(command)))
    for panel, rows in panels.items():
        yield from (f"\n**{panel}**\n", *rows)


def describe_parameter(parameter: Any, context: typer.Context) -> str:
    """A row of a definition list."""
    names = [*parameter.opts, *parameter.secondary_opts]
    if parameter.param_type_name == "argument":
        names = [parameter.display_name_raw]
    elif not parameter.is_flag:
        names[-1] += f" {parameter.display_type_rich(context)}"
    facts = [escape(parameter.help or "")]
    if parameter.required:
        facts.append("Required.")
    elif parameter.default not in (None, "", [], (), True, False):
        facts.append(f"Default: `{getattr(parameter.default, 'value', parameter.default)}`.")
    return f"{', '.join(f'`{name}`' for name in names)}\n: {' '.join(facts)}\n"


def escape(text: str) -> str:
    """Text as Markdown that shows it as it is; typer's own escapes of brackets go."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(text.replace(r"\[", "[").split()))
