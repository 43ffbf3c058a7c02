"""The protocols of `glyphs`, in the spirit of the paper's: (normal, anomalous) class ids of each split.

glyphs-family            one family normal, all others anomalous                          20 splits
glyphs-half-family       every other symbol of a family normal, its siblings anomalous:
                         the hard case                                                    20
glyphs-near              one family normal, a related family anomalous                    12
glyphs-leave-one-out     a family normal but for one symbol, which is the anomaly; of six
                         families                                                         53
glyphs-leave-family-out  all families normal but one                                      20
glyphs-one-of-each       one symbol of each family normal, all others anomalous            5
"""

from bliss_jax.datasets.glyphs import family_classes

NAMES = (
    "glyphs-family",
    "glyphs-half-family",
    "glyphs-near",
    "glyphs-leave-one-out",
    "glyphs-leave-family-out",
    "glyphs-one-of-each",
)
_RELATED = (
    ("chess", "card suits"),
    ("zodiac", "astronomy"),
    ("stars", "flowers"),
    ("letters", "digits"),
    ("tools", "signs"),
    ("faces", "hands"),
)
_SMALL_FAMILIES = ("chess", "zodiac", "dice", "card suits", "music", "trigrams")
_ONE_OF_EACH = 5

Ids = tuple[int, ...]


def glyph_splits(name: str) -> tuple[tuple[Ids, Ids], ...]:
    """The splits of one of `NAMES`, each as normal and anomalous class ids."""
    families = family_classes()
    everything = tuple(i for ids in families.values() for i in ids)

    def others(ids: Ids) -> Ids:
        return tuple(i for i in everything if i not in ids)

    if name == "glyphs-family":
        return tuple((ids, others(ids)) for ids in families.values())
    if name == "glyphs-half-family":
        return tuple((ids[::2], ids[1::2]) for ids in families.values())
    if name == "glyphs-near":
        pairs = [(families[a], families[b]) for a, b in _RELATED]
        return tuple(pair for a, b in pairs for pair in ((a, b), (b, a)))
    if name == "glyphs-leave-one-out":
        return tuple(
            (tuple(j for j in families[family] if j != i), (i,))
            for family in _SMALL_FAMILIES
            for i in families[family]
        )
    if name == "glyphs-leave-family-out":
        return tuple((others(ids), ids) for ids in families.values())
    if name == "glyphs-one-of-each":
        rows = (tuple(ids[i] for ids in families.values()) for i in range(_ONE_OF_EACH))
        return tuple((row, others(row)) for row in rows)
    raise ValueError(f"expected one of {NAMES}, got {name!r}")
