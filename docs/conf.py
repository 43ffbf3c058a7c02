"""Configuration of Sphinx. Build with `sphinx-build -W --keep-going -n docs docs/_build/html`.

Nothing is downloaded, neither by the build nor by a reader's browser: no inventory of another project, no
font and no script of another host. Formulas are MathML, which browsers render themselves. The notebooks in
`tutorials/` are executed.
"""

import ast
import html
import inspect
import os
import re
import sys
import textwrap
from dataclasses import is_dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).parent))
from equations import are_equations, as_latex
from import_graph import as_svg, room_graph, summary
from public_names import as_rst, public_names

project = "bliss_jax"
copyright = "the authors of bliss_jax"
version = release = installed_version("bliss-jax")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
    "sphinx_design",
]
# These files are included by other pages.
exclude_patterns = [
    "_build",
    "figures",
    "calibration-table.md",
    "fuzz-table.md",
    "soak-table.md",
    "metric-conventions-table.md",
]
nitpicky = True
# Types in signatures belong to other projects, whose inventories would have to be downloaded, and a word in
# single backticks is not always a name. References of the pages themselves must exist.
nitpick_ignore_regex = [(f"py:{role}", "(?s).*") for role in ("class", "exc", "obj")]

# furo: one list of all pages at the side; light and dark; no request to another host.
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

myst_enable_extensions = ["amsmath", "attrs_block", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars and their warnings
# The kernels of the notebooks need neither a network nor an accelerator.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# A name in single backticks is a link if it is documented, and code otherwise.
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
maximum_signature_line_length = 70
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

_SECTION = re.compile(
    r"(Args|Arguments|Attributes|Returns|Raises|Yields|Warns|Example|Examples|Note):\s*$"
)


def indented_blocks(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Renders the indented blocks of a docstring: equations as mathematics, other blocks literally."""
    shown: list[str] = []
    block: list[str] = []
    in_section = False
    for line in [*lines, ""]:
        indented = line.startswith("    ")
        if indented and not in_section and (block or (shown and not shown[-1].strip())):
            block.append(line)
            continue
        if line.strip() and block:
            shown += rendered_block(block, _last_text(shown))
            block = []
        elif not line.strip() and block:
            block.append("")
            continue
        if line.strip() and not indented:
            in_section = bool(_SECTION.match(line))
        shown.append(line.replace("|", r"\|"))  # |x| is a norm, not a substitution
    lines[:] = [*shown, *rendered_block(block, _last_text(shown))]


def _last_text(lines: list[str]) -> str:
    return next((line for line in reversed(lines) if line.strip()), "")


def rendered_block(block: list[str], before: str) -> list[str]:
    """Returns an indented block as reStructuredText."""
    if not any(line.strip() for line in block):
        return block
    if before.endswith("::") or before.startswith(".. "):
        return block
    equations = [line for line in block if line.strip()]
    if are_equations(equations):
        return [".. math::", "", f"    {as_latex(equations)}", ""]
    return [".. code-block:: text", "", *block, ""]


class PublicNames(SphinxDirective):
    """The directive `public-names`: the table of all public names."""

    def run(self) -> list[nodes.Node]:
        """Returns the nodes of the table."""
        return self.parse_text_to_nodes("\n".join(as_rst(public_names())))


class ImportGraph(SphinxDirective):
    """The directive `import-graph`: the picture of the rooms, and the line of counts."""

    def run(self) -> list[nodes.Node]:
        """Returns the nodes of the picture and the line."""
        graph = room_graph()
        picture = nodes.raw("", as_svg(graph), format="html")
        return [picture, nodes.paragraph("", summary(graph) + ".")]


def signature_as_written(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: Any
) -> tuple[str, str] | None:
    """Returns a signature with the annotations of the source, such as `Float[Array, "images dim"]`."""
    if inspect.isclass(obj) and (is_dataclass(obj) or hasattr(obj, "_fields")):
        return f"({fields_as_written(obj)})", ""
    obj = getattr(obj, "__func__", obj)  # of a class method
    if not inspect.isfunction(obj):
        return None
    try:
        [function] = ast.parse(textwrap.dedent(inspect.getsource(obj))).body
    except OSError:  # created at run time
        return None
    if not isinstance(function, ast.FunctionDef):
        return None
    arguments = function.args
    if arguments.args and arguments.args[0].arg in ("self", "cls"):
        del arguments.args[0]
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        argument.annotation = unquoted(argument.annotation)
    returned = "" if function.returns is None else ast.unparse(unquoted(function.returns))
    return f"({ast.unparse(arguments)})", returned


def unquoted(annotation: ast.expr | None) -> Any:
    """Returns an annotation without the quotes of a forward reference such as `"Model | None"`."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return ast.parse(annotation.value, mode="eval").body
    return annotation


def fields_as_written(kind: type) -> str:
    """Returns the fields of a dataclass or named tuple as the parameters of its constructor."""
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
                annotation = ast.unparse(unquoted(line.annotation))
                fields[ast.unparse(line.target)] = f": {annotation}{default}"
    return ", ".join(f"{name}{rest}" for name, rest in fields.items())


def visit_inline_math(translator: Any, node: nodes.math) -> None:
    """Writes an inline formula as MathML."""
    translator.body.append(as_mathml(node.astext(), node))
    raise nodes.SkipNode


def visit_block_math(translator: Any, node: nodes.math_block) -> None:
    """Writes a displayed formula as MathML."""
    source = re.sub(r"\\(begin|end)\{(align|equation)\*?\}", "", node.astext()).strip()
    translator.body.append(f'<div class="math">{as_mathml(source, node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def as_mathml(source: str, node: nodes.Element, **options: bool) -> str:
    """Returns a formula as MathML. If docutils cannot translate it, it stays LaTeX, with a warning."""
    try:
        return tex2mathml(source, **options)
    except MathError as error:
        logging.getLogger(__name__).warning("formula: %s", error, location=node)
        return html.escape(source)


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the functions and directives above."""
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(visit_inline_math, None),
        block_renderers=(visit_block_math, None),
    )
    app.add_directive("public-names", PublicNames)
    app.add_directive("import-graph", ImportGraph)
    # Before napoleon, which would render an equation as a quotation.
    app.connect("autodoc-process-docstring", indented_blocks, priority=400)
    app.connect("autodoc-process-signature", signature_as_written)
    return {"parallel_read_safe": True}
