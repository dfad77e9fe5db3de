"""Sphinx configuration of the documentation site; ``make docs`` builds it."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from concordet.version import __version__  # noqa: E402

project = "concordet"
author = "The concordet developers"
copyright = author
version = release = __version__

# The sources are the repository, not docs/, so that links of Markdown pages work here and on a code host alike.
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "studies/README.md",
    "oracles/README.md",
    "concordet/ranking/README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "CODE_OF_CONDUCT.md",
    "SECURITY.md",
    "THIRD_PARTY_NOTICES.md",
]
exclude_patterns = ["**/.ipynb_checkpoints"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
default_role = "code"
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # the slow tests execute the notebooks; the site shows the outputs that are committed

add_module_names = False
autodoc_member_order = "groupwise"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Paper", "Shapes"]

html_theme = "furo"
html_title = f"concordet {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "redirect.html"}
html_copy_source = False
html_math_renderer = "mathml"
templates_path = ["_templates"]
copybutton_exclude = ".linenos, .gp, .go"


def _mathml(latex: str, *, block: bool) -> str:
    """MathML, which browsers render without a script from elsewhere."""
    return "".join(latex2mathml.tex2mathml(latex, as_block=block))


def _inline_math(translator: Any, node: nodes.math) -> None:
    translator.body.append(_mathml(node.astext(), block=False))
    raise nodes.SkipNode


def _display_math(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{_mathml(node.astext(), block=True)}</div>')
    raise nodes.SkipNode


def _skip_undocumented_fields(app: Sphinx, what: str, name: str, item: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out the docstrings that Python makes for fields of named tuples; ours describe the fields."""
    return True if (getattr(item, "__doc__", None) or "").startswith("Alias for field number") else None


def _readable_defaults(
    app: Sphinx, what: str, name: str, item: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Three dots for defaults that are made by a function, so that the signature can be parsed."""
    return (signature and signature.replace("<factory>", "...")), returns


def _link_files(app: Sphinx, page: nodes.document) -> None:
    """Links the files that the README names as plain text, since links to files would be dead on a package index."""
    if app.env.docname != root_doc:
        return
    for name in list(page.findall(nodes.literal)):
        target = name.astext().removesuffix(".md")
        if name.astext().endswith(".md") and target in app.env.found_docs:
            link = addnodes.pending_xref(
                refdomain="std", reftype="doc", reftarget=f"/{target}", refexplicit=True, refwarn=True
            )
            name.replace_self(link)
            link += name


def _import_lazy_names() -> None:
    """Imports what packages import when it is first used; autodoc documents only what is there."""
    for page in sorted((ROOT / "docs" / "reference").glob("*.rst")):
        for name in re.findall(r"automodule:: (\S+)", page.read_text(encoding="utf-8")):
            package = import_module(name)
            vars(package).update({member: getattr(package, member) for member in package.__all__})


def setup(app: Sphinx) -> None:
    _import_lazy_names()
    app.connect("autodoc-process-signature", _readable_defaults)
    app.connect("autodoc-skip-member", _skip_undocumented_fields)
    app.connect("doctree-read", _link_files)
    app.add_html_math_renderer("mathml", (_inline_math, None), (_display_math, None))
