"""Scores: pure functions of embeddings and fitted moments, one file each, higher = more anomalous.

Nothing here jits, reads a file, or knows a model: the caller composes, jits, vmaps, grads and shards.
"""

from bliss_jax.scores.bliss import bliss_score as bliss_score
from bliss_jax.scores.bliss import external_text_score as external_text_score
from bliss_jax.scores.bliss import internal_class_score as internal_class_score
from bliss_jax.scores.clip_ad import clip_ad_score as clip_ad_score
from bliss_jax.scores.energy import energy_score as energy_score
from bliss_jax.scores.entropy import entropy_score as entropy_score
from bliss_jax.scores.explanation import BlissExplanation as BlissExplanation
from bliss_jax.scores.explanation import explain_bliss as explain_bliss
from bliss_jax.scores.explanation import explain_bliss_prepared as explain_bliss_prepared
from bliss_jax.scores.knn import knn_score as knn_score
from bliss_jax.scores.knn import knn_score_from_nearest as knn_score_from_nearest
from bliss_jax.scores.knn import nearest_of_class as nearest_of_class
from bliss_jax.scores.mahalanobis import mahalanobis_score as mahalanobis_score
from bliss_jax.scores.max_cosine import max_cosine_score as max_cosine_score
from bliss_jax.scores.max_logit import max_logit_score as max_logit_score
from bliss_jax.scores.mcm import mcm_score as mcm_score
from bliss_jax.scores.moments import ClassMoments as ClassMoments
from bliss_jax.scores.moments import fit_moments as fit_moments
from bliss_jax.scores.moments import init_moments as init_moments
from bliss_jax.scores.moments import merge_moments as merge_moments
from bliss_jax.scores.moments import psum_moments as psum_moments
from bliss_jax.scores.moments import update_moments as update_moments
from bliss_jax.scores.msp import msp_score as msp_score
from bliss_jax.scores.neglabel import negative_labels as negative_labels
from bliss_jax.scores.neglabel import neglabel_score as neglabel_score
from bliss_jax.scores.prepared import PreparedBliss as PreparedBliss
from bliss_jax.scores.prepared import bliss_score_prepared as bliss_score_prepared
from bliss_jax.scores.prepared import prepare_bliss as prepare_bliss
from bliss_jax.scores.top_k import pad_dictionary as pad_dictionary
from bliss_jax.scores.top_k import top_k_similar as top_k_similar
from bliss_jax.scores.whitened import whitened_bliss_score as whitened_bliss_score
