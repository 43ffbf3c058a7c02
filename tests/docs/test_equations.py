"""The documentation's translation of plain-text equations, and its table of public names."""

import importlib.util
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def load(name):
    """Imports a module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


equations, public_names = load("equations"), load("public_names")


@pytest.mark.parametrize(
    ("plain", "latex"),
    [
        ("mu = t . m_c", r"\mu = t \cdot m_{c}"),
        ("v = (n_c v_c + n0 u) / (n_c + n0)", r"v = \frac{n_{c} v_{c} + n_{0} u}{n_{c} + n_{0}}"),
        ("z = (s(x, d) - mu_{c,d}) / sigma_{c,d}", r"z = \frac{s(x,\, d) - \mu_{c,d}}{\sigma_{c,d}}"),
        ("e = -T log sum_c exp(s_c / T)", r"e = -T \log \sum_{c} \exp (\frac{s_{c}}{T})"),
        ("p(x) <= alpha", r"p(x) \le \alpha"),
        ("f = min over normal classes c of g(c)", r"f = \operatorname{min}_{\text{normal classes }c} g(c)"),
        ("r = sqrt(x^T S^-1 x)", r"r = \sqrt{x^{\top} S^{-1} x}"),
        ("a = b   for each text d of D", r"a = b \qquad\text{ for each text }d\text{ of }D"),
    ],
)  # fmt: skip
def test_equations_become_latex(plain, latex):
    assert equations.are_equations([plain])
    found = equations.as_latex([plain])
    assert " ".join(found.split()) == latex


@pytest.mark.parametrize("division", ["a b / c", "a / b c", "sum_c n_c C_c / sum_c n_c"])
def test_an_ambiguous_division_keeps_its_slash(division):
    assert r"\frac" not in equations.as_latex([f"x = {division}"])


def test_several_equations_are_aligned_at_their_first_sign():
    assert equations.as_latex(["a = b", "P(p(x) <= c) <= c"]).count("&") == 2
    assert equations.as_latex(["P(p(x) <= c) <= c"]).startswith(r"P(p(x) \le c) \le")


@pytest.mark.parametrize("line", ['model = bj.load_model("x")', "name   what it is", "k: texts"])
def test_code_and_tables_are_no_equations(line):
    assert not equations.are_equations([line])


def test_the_table_has_all_public_names_once():
    import bliss_jax

    names = [
        name.removeprefix("bliss_jax.")
        for rows in public_names.public_names().values()
        for _, name, _ in rows
    ]
    assert sorted(names) == sorted(bliss_jax.__all__)


def test_markup_in_a_docstring_is_escaped():
    assert public_names.as_text("s(x, t_0) * |x| of `bliss_score`") == (
        r"s(x, t\_0) \* \|x\| of ``bliss_score``"
    )
