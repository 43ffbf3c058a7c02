"""The work of `bliss-jax demo`: an evaluation with a small trained model that needs no download.

The model `bliss-jax/tiny` embeds the rendered symbols of `glyphs` and the names of all characters of a font.
All scores are evaluated on the six protocols of `glyphs`, and BLISS also with few normal images.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bliss_jax.datasets import GLYPH_PROTOCOLS, Protocol, load_dataset, load_protocol
from bliss_jax.embedding import EmbeddingSet, Track, embed_dataset
from bliss_jax.evaluation import (
    DATASET,
    MODEL,
    Evaluation,
    Settings,
    dataset_defaults,
    evaluate,
    provenance,
    similarity_bias,
)
from bliss_jax.models import load_model
from bliss_jax.report import print_bias, print_summary, write_report
from bliss_jax.text import load_dictionary

SHOTS, DRAWS, N0 = 5, 1, 20.0


def run_demo(
    folder: Path,
    console: Console,
    *,
    command: str,
    say: Callable[[str], None],
    track: Track,
) -> tuple[Evaluation, ...]:
    """Embeds the data set, evaluates all scores, prints the tables and writes the report.

    Args:
        folder: Folder of the report; created if it does not exist.
        console: Console for the tables.
        command: Command line that reproduces the report; the report prints it.
        say: Prints a line of progress notes.
        track: Opens a progress display.

    Returns:
        One evaluation per protocol with all normal images, then one per protocol with few.

    Raises:
        OSError: The report cannot be written.
    """
    model = load_model(MODEL)
    train, test = load_dataset(DATASET, "train"), load_dataset(DATASET, "test")
    dictionary_name, _, k = dataset_defaults(DATASET)
    dictionary = load_dictionary(dictionary_name)
    say(
        f"{model.name}, trained on rendered symbols: {len(train)} normal and {len(test)} test images of "
        f"{len(train.class_names)} symbols; a dictionary of {len(dictionary)} Unicode names."
    )
    embeddings = embed_dataset(
        model, train, test, dictionary, dictionary_name=dictionary_name, batch_size=256, track=track
    )
    protocols = [
        load_protocol(name, dataset=DATASET, num_classes=embeddings.num_classes)
        for name in GLYPH_PROTOCOLS
    ]
    settings = Settings(k=k)
    few = replace(settings, scores=("bliss",), shrinkages=(0.0, N0), shots=SHOTS, draws=DRAWS)
    say(f"Scoring {sum(len(p.splits) for p in protocols)} splits of {len(protocols)} protocols.")
    # In parallel, because most of the time is compilation, which uses one core.
    with ThreadPoolExecutor() as pool:
        of_each = pool.map(lambda chosen: _jointly(embeddings, protocols, chosen), (settings, few))
        evaluations = tuple(evaluation for evaluated in of_each for evaluation in evaluated)
    print_summary(evaluations, console)
    bias = similarity_bias(embeddings)
    print_bias(bias, console)
    say("Writing the report.")
    page = write_report(
        folder, embeddings, protocols[1], evaluations, images=test.images, command=command
    )
    console.print(f"Report: {page}", soft_wrap=True)
    return evaluations


def _jointly(
    embeddings: EmbeddingSet, protocols: Sequence[Protocol], settings: Settings
) -> list[Evaluation]:
    """Evaluates all protocols at once, so that the scores are compiled once instead of six times.

    A few-shot draw covers all classes, and is the same for every protocol.
    """
    splits = tuple(split for protocol in protocols for split in protocol.splits)
    joint = evaluate(embeddings, Protocol("glyphs", "glyphs", DATASET, splits), settings)
    evaluations, start = [], 0
    for protocol in protocols:
        own = slice(start, start := start + len(protocol.splits))
        rows = tuple(
            replace(row, protocol=protocol.name, family=protocol.family, splits=row.splits[own])
            for row in joint.rows
        )
        made_with = provenance(embeddings, protocol, joint.provenance["settings"])
        evaluations.append(Evaluation(made_with, rows, joint.left_out))
    return evaluations
