"""Results are shown in a notebook as the tables that the terminal prints."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from bliss_jax.evaluation import Evaluation, Row, Study, evaluation_table
from bliss_jax.evaluation.results import SplitResult
from bliss_jax.evaluation.tables import row_table, study_table
from bliss_jax.report import print_evaluation


def split(normal: tuple[int, ...], auroc: float) -> SplitResult:
    return SplitResult(normal, auroc, (auroc - 0.02, auroc + 0.01), 0.9, 0.8, 0.25)


def row(score: str, *aurocs: float, **settings) -> Row:
    splits = (split((0, 1), aurocs[0]), split(tuple(range(12)), aurocs[1]))
    settings = {"shots": None, "draws": 1, **settings}
    return Row("zoc-6", "zoc", score, settings, splits)


@pytest.fixture
def evaluation() -> Evaluation:
    rows = (
        row("bliss", 0.96, 0.94, shrinkage=20.0),
        row("mcm", 0.91, 0.89, prompt="labels"),
        row("msp", 0.52, 0.5),
    )
    provenance = {
        "protocol": {"name": "zoc-6", "family": "zoc"},
        "embeddings": {"model": {"name": "bliss-jax/untrained"}},
    }
    return Evaluation(provenance, rows, {"clip_ad": "the embeddings have no <array>"})


def test_an_evaluation_has_a_row_per_score_and_notes(evaluation):
    table = evaluation_table(evaluation)
    assert table.title == "zoc-6 (family zoc): 2 splits, 2 to 12 classes normal, all normal images"
    assert table.headings == ("score", "AUROC", "std", "AUPR anomaly", "AUPR normal", "FPR95")
    assert table.rows == (
        ("bliss, shrinkage 20", "95.0", "1.0", "90.0", "80.0", "25.0"),
        ("mcm (label prompt)", "90.0", "1.0", "90.0", "80.0", "25.0"),
        ("msp *", "51.0", "1.0", "90.0", "80.0", "25.0"),
    )
    notes = " ".join(table.notes)
    assert "within 5 points of chance" in notes
    assert "random, so these numbers only show that the program runs" in notes
    assert "clip_ad was not computed: the embeddings have no <array>." in notes
    per_split = evaluation_table(evaluation, per_split=True)
    assert per_split.headings[6:] == ("0,1", "0,1,2,3,4,5,6,7,8,9,...")
    assert per_split.rows[0][6:] == ("96.0", "94.0")


def test_few_shot_evaluations_state_images_and_draws():
    few = Evaluation({}, (row("bliss", 0.9, 0.9, shots=5, draws=20),))
    assert evaluation_table(few).title.endswith("normal, 5 images per normal class, 20 draws")


def test_a_row_has_its_splits_with_their_intervals_and_the_mean(evaluation):
    table = row_table(evaluation.rows[0])
    assert table.title.startswith("bliss, shrinkage 20, zoc-6 (family zoc): 2 splits")
    assert table.rows == (
        ("0,1", "96.0", "94.0 to 97.0", "90.0", "80.0", "25.0"),
        ("0,1,2,3,4,5,6,7,8,9,...", "94.0", "92.0 to 95.0", "90.0", "80.0", "25.0"),
        ("mean", "95.0", "std 1.0", "90.0", "80.0", "25.0"),
    )


def study(repeats: int) -> Study:
    areas = np.random.default_rng(0).random((2, 3, repeats, 4))
    series = {"internal": areas[0], "bliss": areas[1]}
    return Study("lambda", "lambda", (0.0, 0.5, 1.0), series, "zoc-6")


def test_a_study_has_a_row_per_value_and_a_column_per_score():
    repeated = study(3)
    table = study_table(repeated)
    assert table.title == "zoc-6: AUROC x 100, mean over 4 splits and 3 repeats"
    assert table.headings == ("lambda", "internal", "bliss")
    mean, std = 100 * repeated.mean("bliss")[1], 100 * repeated.std("bliss")[1]
    assert (table.rows[1][0], table.rows[1][2]) == ("0.5", f"{mean:.1f} ± {std:.1f}")
    assert table.notes == ("± is the standard deviation over the repeats.",)
    once = study_table(study(1))
    assert once.title == "zoc-6: AUROC x 100, mean over 4 splits"
    assert "±" not in "".join(once.rows[0])


def test_notebooks_show_the_texts_of_the_terminal(evaluation):
    html = evaluation._repr_html_()
    console = Console(file=io.StringIO(), width=200)
    print_evaluation(evaluation, console)
    printed = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    content = evaluation_table(evaluation)
    for text in (content.title, *content.headings, *content.notes, *sum(content.rows, ())):
        assert text in printed
        assert text.replace("<", "&lt;").replace(">", "&gt;") in html
    for shown in (evaluation.rows[0]._repr_html_(), study(2)._repr_html_()):
        assert shown.count("<table>") == shown.count("</table>") == 1


def test_reprs_are_short_and_contain_no_arrays(evaluation):
    assert repr(evaluation.rows[2]) == (
        "Row(protocol='zoc-6', score='msp', auroc=0.5100, auroc_std=0.0100, splits=2)"
    )
    assert repr(evaluation).startswith("Evaluation(rows=(Row(protocol='zoc-6', score='bliss'")
    assert repr(evaluation).endswith("left_out=['clip_ad'])")
    assert repr(study(2)) == (
        "Study(name='lambda', protocol='zoc-6', setting='lambda', values=(0.0, 0.5, 1.0), "
        "scores=['internal', 'bliss'], repeats=2, splits=4)"
    )


def test_an_evaluation_without_rows_can_be_shown():
    empty = Evaluation({}, ())
    assert evaluation_table(empty).title == "no scores"
    assert "no scores" in empty._repr_html_()
    assert repr(replace(empty, left_out={"knn": "no images"})) == (
        "Evaluation(rows=(), left_out=['knn'])"
    )
