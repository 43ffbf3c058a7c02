"""Creates the dictionaries shipped with bliss_jax, from WordNet 3.0, ImageNet's synsets and DejaVu Sans.

    apt-get install wordnet-base        # or unpack WordNet-3.0.tar.gz from wordnet.princeton.edu
    python -m experiments.dictionaries.make_dictionaries /usr/share/wordnet

The wnids of ImageNet-1k and their order are those of tensorflow-datasets' label file of imagenet2012. The
characters of DejaVu Sans are those of the font shipped with matplotlib.
"""

import gzip
from importlib.resources import files
from pathlib import Path

import click

from bliss_jax.datasets.glyph_scenes import characters
from bliss_jax.datasets.glyphs import glyph_name
from bliss_jax.text import dictionary_hash
from bliss_jax.text.wordnet import (
    distinct_lemmas,
    phrases_of_wnids,
    read_adjective_synsets,
    read_licence,
    read_noun_synsets,
)

DATA = Path(__file__).parents[2] / "bliss_jax" / "text" / "data"


def imagenet1k_wnids() -> list[str]:
    """Returns the 1,000 wnids in the order of the labels."""
    labels = files("tensorflow_datasets") / "datasets" / "imagenet2012" / "labels.txt"
    return labels.read_text().split()


@click.command()
@click.argument("wordnet", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--output", default=DATA, type=click.Path(file_okay=False, path_type=Path))
def main(wordnet: Path, output: Path) -> None:
    """Create the dictionaries from the folder WORDNET with data.noun and data.adj, and copy WordNet's licence."""
    content = (wordnet / "data.noun").read_bytes()
    synsets = read_noun_synsets(content)
    adjectives = read_adjective_synsets((wordnet / "data.adj").read_bytes())
    output.mkdir(parents=True, exist_ok=True)
    (output / "WORDNET_LICENSE.txt").write_text(read_licence(content), encoding="ascii")
    for name, phrases in {
        "imagenet1k": phrases_of_wnids(synsets, imagenet1k_wnids()),
        "wordnet-nouns": distinct_lemmas(synsets),
        "wordnet-adjectives": distinct_lemmas(adjectives),
        "unicode-names": tuple(map(glyph_name, characters())),
    }.items():
        text = "".join(f"{phrase}\n" for phrase in phrases)
        packed = gzip.compress(text.encode(), mtime=0)
        (output / f"{name}.txt.gz").write_bytes(packed)
        click.echo(
            f"{name}: {len(phrases)} phrases, {len(set(phrases))} distinct, {len(packed)} bytes, "
            f"sha256 {dictionary_hash(phrases)}"
        )


if __name__ == "__main__":
    main()
