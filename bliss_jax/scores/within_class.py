"""The covariance within the normal classes, and whitening by it.

    S = sum_c n_c C_c / sum_c n_c + ridge (trace / dim) I = L L^T        over the normal classes c

Products of whitened vectors L^-1 x are those of the metric S^-1: (L^-1 a) . (L^-1 b) = a^T S^-1 b. The ridge, a
share of the mean eigenvalue, makes S invertible if there are fewer images than dimensions.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float

from bliss_jax._checks import Array
from bliss_jax.scores.moments import ClassMoments
from bliss_jax.scores.statistics import pooled_covariance


def whitening_within_classes(
    moments: ClassMoments,
    mask: Bool[jax.Array, " classes"],
    ridge: float | Float[Array, ""],
) -> Float[jax.Array, "dim dim"]:
    """Returns L^-1, lower triangular; NaN if S is singular."""
    return inverse_factor(pooled_covariance(moments, mask), ridge)


def inverse_factor(
    cov: Float[jax.Array, "dim dim"], ridge: float | Float[Array, ""]
) -> Float[jax.Array, "dim dim"]:
    """Returns the inverse of the Cholesky factor of cov + ridge (trace / dim) I; NaN if this matrix is singular."""
    dim, ridge = len(cov), jnp.asarray(ridge).astype(cov.dtype)
    identity = jnp.eye(dim, dtype=cov.dtype)
    factor = jnp.linalg.cholesky(cov + ridge * (jnp.trace(cov) / dim) * identity)
    # With the inverse, a product whitens the images. A triangular solve with images that are sharded over devices
    # would gather all of them.
    return jax.scipy.linalg.solve_triangular(factor, identity, lower=True)


def whiten(
    vectors: Float[jax.Array, "rows dim"], inverse: Float[jax.Array, "dim dim"]
) -> Float[jax.Array, "rows dim"]:
    """Returns L^-1 v for each row v."""
    return jnp.matmul(vectors, inverse.T, precision=lax.Precision.HIGHEST)


def normal_centre(
    moments: ClassMoments, mask: Bool[jax.Array, " classes"]
) -> Float[jax.Array, "1 dim"]:
    """Returns the mean of the means of the normal classes. Subtracting it first keeps whitened vectors short."""
    number = jnp.maximum(mask.sum(), 1).astype(moments.mean.dtype)
    total = jnp.where(mask[:, None], moments.mean, 0).sum(axis=0)
    return (total / number)[None, :]
