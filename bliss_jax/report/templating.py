"""Pages from templates; every name, label and path in them is escaped."""

from typing import Any


def render(template: str, **content: Any) -> str:
    """A page; a name that the template uses and `content` lacks is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("bliss_jax.report"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(template).render(**content)
