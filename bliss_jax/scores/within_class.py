"""The covariance within the normal classes, and whitening by it.

    S = sum_c n_c C_c / sum_c n_c + ridge (trace / dim) I = L L^T        over the normal classes c

Lengths and angles of L^-1 x are those that S gives: (L^-1 a) . (L^-1 b) = a^T S^-1 b. The ridge, a share of
the mean eigenvalue, makes S invertible where images are fewer than dimensions.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from bliss_jax._checks import Array
from bliss_jax.scores.moments import ClassMoments
from bliss_jax.scores.text_statistics import pooled_covariance


def cholesky_within_classes(
    moments: ClassMoments,
    mask: Bool[jax.Array, " classes"],
    ridge: float | Float[Array, ""],
) -> Float[jax.Array, "dim dim"]:
    """The lower triangular L of S = L L^T; NaN where S is singular."""
    cov = pooled_covariance(moments, mask)
    identity = jnp.eye(len(cov), dtype=cov.dtype)
    return jnp.linalg.cholesky(cov + ridge * (jnp.trace(cov) / len(cov)) * identity)


def whiten(
    vectors: Float[jax.Array, "rows dim"], factor: Float[jax.Array, "dim dim"]
) -> Float[jax.Array, "rows dim"]:
    """L^-1 v for each row v."""
    return jax.scipy.linalg.solve_triangular(factor, vectors.T, lower=True).T
