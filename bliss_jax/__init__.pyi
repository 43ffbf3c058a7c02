from collections.abc import Callable
from typing import Any

from bliss_jax.datasets import ImageDataset as ImageDataset
from bliss_jax.datasets import load_dataset as load_dataset
from bliss_jax.datasets import load_protocol as load_protocol
from bliss_jax.datasets import read_image as read_image
from bliss_jax.detection import BlissOutlierDetector as BlissOutlierDetector
from bliss_jax.detection import Detector as Detector
from bliss_jax.detection import Explanation as Explanation
from bliss_jax.detection import ScoredFile as ScoredFile
from bliss_jax.detection import score_files as score_files
from bliss_jax.embedding import Encoder as Encoder
from bliss_jax.embedding import EmbeddingSet as EmbeddingSet
from bliss_jax.embedding import embed_dataset as embed_dataset
from bliss_jax.embedding import embed_images as embed_images
from bliss_jax.embedding import embed_texts as embed_texts
from bliss_jax.embedding import load_embeddings as load_embeddings
from bliss_jax.embedding import save_embeddings as save_embeddings
from bliss_jax.evaluation import Settings as Settings
from bliss_jax.evaluation import class_masks as class_masks
from bliss_jax.evaluation import evaluate as evaluate
from bliss_jax.metrics import aupr as aupr
from bliss_jax.metrics import auroc as auroc
from bliss_jax.metrics import auroc_interval as auroc_interval
from bliss_jax.metrics import bootstrap_interval as bootstrap_interval
from bliss_jax.metrics import fpr_at_tpr as fpr_at_tpr
from bliss_jax.models import Model as Model
from bliss_jax.models import Preprocessing as Preprocessing
from bliss_jax.models import encode_image as encode_image
from bliss_jax.models import encode_patches as encode_patches
from bliss_jax.models import encode_text as encode_text
from bliss_jax.models import encode_token_embeddings as encode_token_embeddings
from bliss_jax.models import load_model as load_model
from bliss_jax.models import preprocess as preprocess
from bliss_jax.models import preprocess_float as preprocess_float
from bliss_jax.models import resize_bicubic as resize_bicubic
from bliss_jax.models import token_embeddings as token_embeddings
from bliss_jax.scores import BlissDirections as BlissDirections
from bliss_jax.scores import BlissExplanation as BlissExplanation
from bliss_jax.scores import ClassMoments as ClassMoments
from bliss_jax.scores import PreparedBliss as PreparedBliss
from bliss_jax.scores import Score as Score
from bliss_jax.scores import TextStatistics as TextStatistics
from bliss_jax.scores import benjamini_hochberg as benjamini_hochberg
from bliss_jax.scores import bliss_directions as bliss_directions
from bliss_jax.scores import bliss_score as bliss_score
from bliss_jax.scores import bliss_score_prepared as bliss_score_prepared
from bliss_jax.scores import clip_ad_score as clip_ad_score
from bliss_jax.scores import combine as combine
from bliss_jax.scores import conformal_p_values as conformal_p_values
from bliss_jax.scores import conformal_threshold as conformal_threshold
from bliss_jax.scores import dense_bliss_score as dense_bliss_score
from bliss_jax.scores import energy_score as energy_score
from bliss_jax.scores import entropy_score as entropy_score
from bliss_jax.scores import explain_bliss as explain_bliss
from bliss_jax.scores import explain_bliss_prepared as explain_bliss_prepared
from bliss_jax.scores import external_text_score as external_text_score
from bliss_jax.scores import fit_moments as fit_moments
from bliss_jax.scores import fit_patch_moments as fit_patch_moments
from bliss_jax.scores import gl_mcm_score as gl_mcm_score
from bliss_jax.scores import images_needed as images_needed
from bliss_jax.scores import init_moments as init_moments
from bliss_jax.scores import internal_class_score as internal_class_score
from bliss_jax.scores import knn_score as knn_score
from bliss_jax.scores import knn_score_from_nearest as knn_score_from_nearest
from bliss_jax.scores import mahalanobis_score as mahalanobis_score
from bliss_jax.scores import max_cosine_score as max_cosine_score
from bliss_jax.scores import max_logit_score as max_logit_score
from bliss_jax.scores import mcm_score as mcm_score
from bliss_jax.scores import merge_moments as merge_moments
from bliss_jax.scores import min_over_classes as min_over_classes
from bliss_jax.scores import msp_score as msp_score
from bliss_jax.scores import nearest_of_class as nearest_of_class
from bliss_jax.scores import negative_labels as negative_labels
from bliss_jax.scores import neglabel_score as neglabel_score
from bliss_jax.scores import pad_dictionary as pad_dictionary
from bliss_jax.scores import prepare_bliss as prepare_bliss
from bliss_jax.scores import psum_moments as psum_moments
from bliss_jax.scores import similarity as similarity
from bliss_jax.scores import text_statistics as text_statistics
from bliss_jax.scores import top_k_similar as top_k_similar
from bliss_jax.scores import update_moments as update_moments
from bliss_jax.scores import whitened_bliss_score as whitened_bliss_score
from bliss_jax.text import fill_prompt as fill_prompt
from bliss_jax.text import load_dictionary as load_dictionary

def _command() -> None: ...
def _require(module: str, extra: str) -> None: ...
def _lazy_exports(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]: ...
