"""Energy of the standardised similarities to the labels.

    score(x) = -T log sum_c exp(z_c(x) / T),    z_c(x) = (s(x, t_c) - mu_c) / sigma_c        over the normal classes c

mu_c and sigma_c are the mean and the standard deviation of the similarity of class c to its own label, as in BLISS. The
energy of plain similarities needs CLIP's temperature of 0.01, because cosines differ little; standardised ones have a
unit, so T = 1. As T -> 0, the score becomes the minimum of the internal class score. Higher is more anomalous.

Source: the energy of Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, equation 3, on the
internal class score of Goodge et al., BMVC 2024. The combination is an option of this library.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from bliss_jax import _checks
from bliss_jax._checks import HIGHEST, Array, Precision
from bliss_jax.scores.bliss import internal_class_score
from bliss_jax.scores.moments import ClassMoments
from bliss_jax.scores.parts import nan_if_normal_is_empty
from bliss_jax.scores.record import Score


def z_energy_score(
    embeddings: Float[Array, "images dim"],
    label_embeddings: Float[Array, "classes dim"],
    moments: ClassMoments,
    *,
    normal: Bool[Array, " classes"] | None = None,
    temperature: float | Float[Array, ""] = 1.0,
    shrinkage: float | Float[Array, ""] = 0.0,
    precision: Precision = HIGHEST,
) -> Float[jax.Array, " images"]:
    """Computes -T log sum_c exp(z_c(x) / T) over the normal classes c.

    Args:
        embeddings: Unit-norm image embeddings [images, dim].
        label_embeddings: Unit-norm embedding of each class's prompt [classes, dim].
        moments: Fitted on normal images of the same classes.
        normal: Mask of the normal classes [classes]; all by default.
        temperature: T > 0; may be traced.
        shrinkage: n0 of `bliss_score`.
        precision: Precision of the products, see `jax.lax.dot_general`; static.

    Returns:
        Scores [images], at least float32, higher = more anomalous. 0 images give an empty array. Under tracing, an
        image that is not finite has the score NaN, and all images have NaN if a normal class has no images.

    Raises:
        ValueError: One of the reasons listed in `bliss_score`, or the temperature is not one positive number.
    """
    _checks.scalar("temperature", temperature, minimum=0.0, exclusive=True)
    internal = internal_class_score(
        embeddings,
        label_embeddings,
        moments,
        normal=normal,
        shrinkage=shrinkage,
        precision=precision,
    )
    checks = _checks.ValueChecks()
    mask = jnp.asarray(checks.normal_mask(normal, len(moments.count), moments.count))
    checks.run()
    score = _energy(internal, mask, jnp.asarray(temperature).astype(internal.dtype))
    return nan_if_normal_is_empty(score, mask, jnp.asarray(moments.count))


@jax.jit
def _energy(internal: jax.Array, mask: jax.Array, temperature: jax.Array) -> jax.Array:
    scaled = jnp.where(mask[None, :], -internal / temperature, -jnp.inf)
    return -temperature * jax.nn.logsumexp(scaled, axis=1)


def _of_split(internal, normal) -> jax.Array:
    return _energy(internal, normal, jnp.ones((), internal.dtype))


SCORE = Score("z_energy", _of_split, source="Liu et al., NeurIPS 2020", order=26)
