import importlib.util

from pages import ROOT


def test_the_table_in_the_documentation_is_the_output_of_its_script():
    script = ROOT / "docs/metric_conventions.py"
    spec = importlib.util.spec_from_file_location("metric_conventions", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs/metric-conventions-table.md").read_text(encoding="utf-8")
    assert module.table() + "\n" == written
