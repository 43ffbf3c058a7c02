"""Rendering of HTML pages from templates, with escaping of all inserted text."""

from typing import Any

from bliss_jax import _require


def render(template: str, **content: Any) -> str:
    """Returns a page. A name that the template uses but `content` does not have raises an error."""
    _require("jinja2", "report")
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("bliss_jax.report"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(template).render(**content)
