"""Tests of explanations as tables in notebooks."""

import bliss_jax as bj


def test_an_explanation_is_a_table_with_its_parts_and_escaped_phrases():
    why = bj.Explanation(2.5, 0.04, "<cat>", 1.5, 2.0, (("<b>dog</b>", 3.1), ("car", -0.5)))
    html = why._repr_html_()
    for shown in ("Nearest class: &lt;cat&gt;", "2.50", "0.04", "&lt;b&gt;dog&lt;/b&gt;", "-0.50"):
        assert shown in html
    assert html.count("<tr>") == 1 + 4 + 2
    assert "p-value" not in why._replace(p_value=None)._repr_html_()
