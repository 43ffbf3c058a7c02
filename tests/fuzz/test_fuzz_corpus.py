"""Former crashes have their documented outcome, and random mutations of valid inputs do not crash."""

import random

import pytest

from fuzz.mutate import mutate
from fuzz.targets import NAMES, corpus_files, target

# Without the run-time shape checks, so that the errors of the library itself are tested.
pytestmark = pytest.mark.usefixtures("unchecked")

MUTATIONS = {"detector": 300, "command": 40}
"""Numbers of mutations for slow readers; the others get `MANY`."""
MANY = 3000


CORPUS_FILES = [(name, file) for name in NAMES for file in corpus_files(name)]


@pytest.mark.parametrize(
    ("name", "file"), CORPUS_FILES, ids=[f"{n}-{f.name}" for n, f in CORPUS_FILES]
)
def test_inputs_of_the_corpus_have_the_outcome_in_their_name(name, file):
    expected = "accepted" if file.name.startswith("accepted-") else "refused"
    assert target(name).outcome(file.read_bytes()) == expected


def test_the_corpus_has_inputs_for_every_target():
    assert {name for name, _ in CORPUS_FILES} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_random_mutations_are_accepted_or_refused_without_a_crash(name):
    reader, rng = target(name), random.Random(0)
    for content in reader.seeds:
        reader.outcome(content)
    for _ in range(MUTATIONS.get(name, MANY)):
        reader.outcome(mutate(rng, reader.seeds, reader.words))
