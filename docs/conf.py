"""How the documentation is built: `sphinx-build -W --keep-going -n docs docs/_build/html`.

Nothing is fetched, neither while building nor while reading: no inventory of another project, no font,
no script from elsewhere. Formulas become MathML, which browsers draw themselves.
"""

import ast
import html
import inspect
import re
import textwrap
from dataclasses import is_dataclass
from importlib.metadata import version as installed_version
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

project = "bliss_jax"
copyright = "the authors of bliss_jax"
version = release = installed_version("bliss-jax")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
]
# What pages include is no page of its own.
exclude_patterns = ["_build", "figures", "calibration-table.md", "fuzz-table.md", "soak-table.md"]
nitpicky = True
# Types in signatures are of other projects, whose inventories would have to be fetched, and single backticks
# are not all names. What the pages themselves refer to, functions, methods, pages, must exist.
nitpick_ignore_regex = [(f"py:{role}", "(?s).*") for role in ("class", "exc", "obj")]

# furo: one list of all pages at the side, which a site of this size fits into; light and dark; no request to
# another host.
html_theme = "furo"
html_title = f"bliss_jax {release}"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False
html_copy_source = False
html_math_renderer = "mathml"
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_exclude = ".linenos, .gp, .go"

myst_enable_extensions = ["amsmath", "attrs_block", "deflist", "dollarmath"]
myst_heading_anchors = 3

# A name in single backticks is a link where it is documented, and code elsewhere.
default_role = "py:obj"
add_module_names = False
autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
maximum_signature_line_length = 70
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

_SECTION = re.compile(
    r"(Args|Arguments|Attributes|Returns|Raises|Yields|Example|Examples|Note):\s*$"
)


def indented_lines_are_literal(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Equations and tables in a docstring's prose stand indented; they are shown as they were typed."""
    shown: list[str] = []
    in_section = in_literal = False
    for line in lines:
        indented = line.startswith("    ")
        if line and not indented:
            in_section, in_literal = bool(_SECTION.match(line)), False
        if indented and not in_section and not in_literal and shown and not shown[-1].strip():
            follows = next((text for text in reversed(shown) if text.strip()), "")
            if not follows.endswith("::") and not follows.startswith(".. "):
                shown += [".. code-block:: text", ""]
            in_literal = True
        # |x| is a norm, not a substitution of reStructuredText.
        shown.append(line if in_literal else line.replace("|", r"\|"))
    lines[:] = shown


def signature_as_written(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: Any
) -> tuple[str, str] | None:
    """The annotations of the source, `Float[Array, "images dim"]`, not what they are at run time."""
    if inspect.isclass(obj) and (is_dataclass(obj) or hasattr(obj, "_fields")):
        return f"({fields_as_written(obj)})", ""
    obj = getattr(obj, "__func__", obj)  # of a class method
    if not inspect.isfunction(obj):
        return None
    try:
        [function] = ast.parse(textwrap.dedent(inspect.getsource(obj))).body
    except OSError:  # made at run time
        return None
    if not isinstance(function, ast.FunctionDef):
        return None
    arguments = function.args
    if arguments.args and arguments.args[0].arg in ("self", "cls"):
        del arguments.args[0]
    returned = "" if function.returns is None else ast.unparse(function.returns)
    return f"({ast.unparse(arguments)})", returned


def fields_as_written(kind: type) -> str:
    """The fields of a dataclass or named tuple as parameters of its constructor."""
    fields = {}
    for base in reversed(kind.__mro__):
        if not (is_dataclass(base) or hasattr(base, "_fields")):
            continue
        [definition] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        for line in definition.body if isinstance(definition, ast.ClassDef) else ():
            if isinstance(line, ast.AnnAssign):
                default = "" if line.value is None else f" = {ast.unparse(line.value)}"
                if default.startswith(" = field("):
                    default = " = ..."
                fields[ast.unparse(line.target)] = f": {ast.unparse(line.annotation)}{default}"
    return ", ".join(f"{name}{rest}" for name, rest in fields.items())


def visit_inline_math(translator: Any, node: nodes.math) -> None:
    """$...$ as MathML."""
    translator.body.append(as_mathml(node.astext(), node))
    raise nodes.SkipNode


def visit_block_math(translator: Any, node: nodes.math_block) -> None:
    """A formula on a line of its own as MathML."""
    source = re.sub(r"\\(begin|end)\{(align|equation)\*?\}", "", node.astext()).strip()
    translator.body.append(f'<div class="math">{as_mathml(source, node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def as_mathml(source: str, node: nodes.Element, **options: bool) -> str:
    """MathML; what docutils does not know is a warning at the formula's place, and stays LaTeX."""
    try:
        return tex2mathml(source, **options)
    except MathError as error:
        logging.getLogger(__name__).warning("formula: %s", error, location=node)
        return html.escape(source)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the functions above."""
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(visit_inline_math, None),
        block_renderers=(visit_block_math, None),
    )
    # Before napoleon, which would take an equation for a quotation.
    app.connect("autodoc-process-docstring", indented_lines_are_literal, priority=400)
    app.connect("autodoc-process-signature", signature_as_written)
    return {"parallel_read_safe": True}
