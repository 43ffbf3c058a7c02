"""Embeddings of the validation renders of `glyphs`, on which settings are chosen.

    python -m experiments.methods.validation_set glyphs-validation.npz

The training images, the labels and the dictionary are those of `glyphs`; the test images are the validation renders.
"""

from pathlib import Path

import click

from bliss_jax.datasets.glyphs import load_glyphs
from bliss_jax.embedding import embed_dataset, save_embeddings
from bliss_jax.models import load_model
from bliss_jax.text import load_dictionary

DICTIONARY = "unicode-names"


@click.command()
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
def main(output: Path) -> None:
    """Embed the training and the validation renders of glyphs and write them to OUTPUT."""
    embeddings = embed_dataset(
        load_model("bliss-jax/tiny"),
        load_glyphs("train"),
        load_glyphs("validation"),
        load_dictionary(DICTIONARY),
        dictionary_name=DICTIONARY,
        batch_size=256,
    )
    save_embeddings(embeddings, output)


if __name__ == "__main__":
    main()
