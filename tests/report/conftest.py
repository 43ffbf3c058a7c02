"""The report that all tests of the pages share."""

import pytest
from reports import Report, write_example


@pytest.fixture(scope="session")
def report(tmp_path_factory) -> Report:
    return write_example(tmp_path_factory.mktemp("report") / "new" / "folder")
