"""Tests of the recorded outputs: the files are small and equal what their script computes today."""

import json

import numpy as np
import pytest
from record_oracles import GROUPS, ORACLES, recorded


def test_recorded_files_are_small_and_name_their_versions():
    files = sorted(ORACLES.glob("*.npz"))
    assert {file.stem for file in files} == set(GROUPS)
    assert sum(file.stat().st_size for file in files) <= 1_500_000
    for file in files:
        arrays = recorded(file.stem)
        assert {"torch", "transformers", "numpy"} <= json.loads(str(arrays["versions"])).keys()
        assert {array.dtype.kind for array in arrays.values()} <= set("fiuU")


@pytest.mark.parity
@pytest.mark.torch
def test_recorded_outputs_of_transformers_equal_todays():
    arrays = GROUPS["transformers"]()
    expected = recorded("transformers")
    assert arrays.keys() | {"versions"} == expected.keys()
    for name, array in arrays.items():
        # Other processors may order a sum differently; between two orders embeddings differ this much.
        np.testing.assert_allclose(array, expected[name], atol=5e-7, rtol=0, err_msg=name)
