"""What was once a crash is refused, and some thousand mutations of each reader's inputs are no crash."""

import random

import pytest

from fuzz.mutate import mutate
from fuzz.targets import NAMES, kept_inputs, target

# The library's own errors are what is seen, not those of the run-time shape checks.
pytestmark = pytest.mark.usefixtures("unchecked")

MUTATIONS = {"detector": 300, "command": 40}
"""Of slower readers; the others get `MANY`."""
MANY = 3000


KEPT = [(name, file) for name in NAMES for file in kept_inputs(name)]


@pytest.mark.parametrize(("name", "file"), KEPT, ids=[f"{n}-{f.name}" for n, f in KEPT])
def test_kept_inputs_have_the_outcome_they_are_named_after(name, file):
    expected = "accepted" if file.name.startswith("accepted-") else "refused"
    assert target(name).outcome(file.read_bytes()) == expected


def test_every_reader_of_files_has_kept_inputs():
    assert {name for name, _ in KEPT} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_mutations_are_accepted_or_refused(name):
    reader, rng = target(name), random.Random(0)
    for content in reader.seeds:
        reader.outcome(content)
    for _ in range(MUTATIONS.get(name, MANY)):
        reader.outcome(mutate(rng, reader.seeds, reader.words))
