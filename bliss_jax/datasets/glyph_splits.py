"""The protocols of `glyphs`, in the spirit of the paper's: (normal, anomalous) class ids of each split.

glyphs-family             one family normal, all others anomalous                         20 splits
glyphs-half-family        every other symbol of a family normal, its siblings anomalous:
                          the hard case                                                   20
glyphs-leave-sibling-out  a family normal but for one symbol, which is the anomaly; of six
                          families                                                        53
glyphs-leave-family-out   all families normal but one                                     20
glyphs-third              every third symbol anomalous, all others normal                  3
glyphs-leave-one-out      all symbols normal but one, which is the anomaly; every tenth   26
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
    """The splits of one of `GLYPH_PROTOCOLS`, each as normal and anomalous class ids."""
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
