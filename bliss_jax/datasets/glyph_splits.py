"""Protocols of the data set `glyphs`, analogous to those of the paper.

                          normal classes               anomalous classes                   splits
glyphs-family             one family                   all other families                  20
glyphs-half-family        every other symbol           the other symbols of the family     20
                          of a family                  (the hard case)
glyphs-leave-sibling-out  one of six small families    that symbol                         53
                          without one symbol
glyphs-leave-family-out   all families but one         that family                         20
glyphs-third              all other symbols            every third symbol                   3
glyphs-leave-one-out      all symbols but one          that symbol (every tenth symbol)    26
"""

from bliss_jax.datasets.glyphs import family_classes

GLYPH_PROTOCOLS = (
    "glyphs-family",
    "glyphs-half-family",
    "glyphs-leave-sibling-out",
    "glyphs-leave-family-out",
    "glyphs-third",
    "glyphs-leave-one-out",
)
_SMALL_FAMILIES = ("chess", "zodiac", "dice", "card suits", "music", "trigrams")
_LEFT_OUT = 10

Ids = tuple[int, ...]


def glyph_splits(name: str) -> tuple[tuple[Ids, Ids], ...]:
    """Returns the splits of one of `GLYPH_PROTOCOLS`, each as (normal, anomalous) class ids.

    Raises:
        ValueError: The name is not one of `GLYPH_PROTOCOLS`.
    """
    families = family_classes()
    everything = tuple(i for ids in families.values() for i in ids)

    def others(ids: Ids) -> Ids:
        return tuple(i for i in everything if i not in ids)

    if name == "glyphs-family":
        return tuple((ids, others(ids)) for ids in families.values())
    if name == "glyphs-half-family":
        return tuple((ids[::2], ids[1::2]) for ids in families.values())
    if name == "glyphs-leave-sibling-out":
        return tuple(
            (tuple(j for j in families[family] if j != i), (i,))
            for family in _SMALL_FAMILIES
            for i in families[family]
        )
    if name == "glyphs-leave-family-out":
        return tuple((others(ids), ids) for ids in families.values())
    if name == "glyphs-third":
        thirds = (everything[start::3] for start in range(3))
        return tuple((others(ids), ids) for ids in thirds)
    if name == "glyphs-leave-one-out":
        return tuple((others((i,)), (i,)) for i in everything[::_LEFT_OUT])
    raise ValueError(f"expected one of {GLYPH_PROTOCOLS}, got {name!r}")
