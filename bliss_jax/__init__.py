"""BLISS in JAX: CLIP-based semantic anomaly detection with the text-similarity bias corrected.

    import bliss_jax as bj

    model = bj.load_model("openai/clip-vit-base-patch16")
    moments = bj.fit_moments(train_embeddings, train_labels, num_classes=10)
    scores = bj.bliss_score(test_embeddings, label_embeddings, dictionary_embeddings, moments)

Every name below is imported when it is first used: the scores and metrics need JAX alone, and only the
encoders and data sets bring Flax, transformers and tensorflow-datasets.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bliss_jax.conformal import benjamini_hochberg as benjamini_hochberg
    from bliss_jax.conformal import conformal_p_values as conformal_p_values
    from bliss_jax.conformal import conformal_threshold as conformal_threshold
    from bliss_jax.conformal import images_needed as images_needed
    from bliss_jax.datasets import ImageDataset as ImageDataset
    from bliss_jax.datasets import load_dataset as load_dataset
    from bliss_jax.datasets import load_protocol as load_protocol
    from bliss_jax.detector import Detector as Detector
    from bliss_jax.detector import Explanation as Explanation
    from bliss_jax.embed import embed_dataset as embed_dataset
    from bliss_jax.embed import embed_images as embed_images
    from bliss_jax.embed import embed_texts as embed_texts
    from bliss_jax.embedding_set import EmbeddingSet as EmbeddingSet
    from bliss_jax.embedding_set import load_embeddings as load_embeddings
    from bliss_jax.embedding_set import save_embeddings as save_embeddings
    from bliss_jax.evaluation import Settings as Settings
    from bliss_jax.evaluation import evaluate as evaluate
    from bliss_jax.metrics import aupr as aupr
    from bliss_jax.metrics import auroc as auroc
    from bliss_jax.metrics import auroc_interval as auroc_interval
    from bliss_jax.metrics import bootstrap_interval as bootstrap_interval
    from bliss_jax.metrics import fpr_at_tpr as fpr_at_tpr
    from bliss_jax.models import Model as Model
    from bliss_jax.models import encode_image as encode_image
    from bliss_jax.models import encode_text as encode_text
    from bliss_jax.models import load_model as load_model
    from bliss_jax.models.preprocess import Preprocessing as Preprocessing
    from bliss_jax.models.preprocess import preprocess as preprocess
    from bliss_jax.models.preprocess import resize_bicubic as resize_bicubic
    from bliss_jax.outlier_detector import BlissOutlierDetector as BlissOutlierDetector
    from bliss_jax.scored_files import ScoredFile as ScoredFile
    from bliss_jax.scored_files import score_files as score_files
    from bliss_jax.scores import BlissExplanation as BlissExplanation
    from bliss_jax.scores import ClassMoments as ClassMoments
    from bliss_jax.scores import PreparedBliss as PreparedBliss
    from bliss_jax.scores import bliss_score as bliss_score
    from bliss_jax.scores import bliss_score_prepared as bliss_score_prepared
    from bliss_jax.scores import clip_ad_score as clip_ad_score
    from bliss_jax.scores import energy_score as energy_score
    from bliss_jax.scores import entropy_score as entropy_score
    from bliss_jax.scores import explain_bliss as explain_bliss
    from bliss_jax.scores import explain_bliss_prepared as explain_bliss_prepared
    from bliss_jax.scores import external_text_score as external_text_score
    from bliss_jax.scores import fit_moments as fit_moments
    from bliss_jax.scores import init_moments as init_moments
    from bliss_jax.scores import internal_class_score as internal_class_score
    from bliss_jax.scores import knn_score as knn_score
    from bliss_jax.scores import mahalanobis_score as mahalanobis_score
    from bliss_jax.scores import max_cosine_score as max_cosine_score
    from bliss_jax.scores import max_logit_score as max_logit_score
    from bliss_jax.scores import mcm_score as mcm_score
    from bliss_jax.scores import merge_moments as merge_moments
    from bliss_jax.scores import msp_score as msp_score
    from bliss_jax.scores import neglabel_score as neglabel_score
    from bliss_jax.scores import pad_dictionary as pad_dictionary
    from bliss_jax.scores import prepare_bliss as prepare_bliss
    from bliss_jax.scores import psum_moments as psum_moments
    from bliss_jax.scores import top_k_similar as top_k_similar
    from bliss_jax.scores import update_moments as update_moments
    from bliss_jax.scores import whitened_bliss_score as whitened_bliss_score
    from bliss_jax.text import fill_prompt as fill_prompt
    from bliss_jax.text import load_dictionary as load_dictionary

_NAMES = {
    "conformal": "benjamini_hochberg conformal_p_values conformal_threshold images_needed",
    "datasets": "ImageDataset load_dataset load_protocol",
    "detector": "Detector Explanation",
    "embed": "embed_dataset embed_images embed_texts",
    "embedding_set": "EmbeddingSet load_embeddings save_embeddings",
    "evaluation": "Settings evaluate",
    "metrics": "aupr auroc auroc_interval bootstrap_interval fpr_at_tpr",
    "models": "Model encode_image encode_text load_model",
    "models.preprocess": "Preprocessing preprocess resize_bicubic",
    "outlier_detector": "BlissOutlierDetector",
    "scored_files": "ScoredFile score_files",
    "scores": "BlissExplanation ClassMoments PreparedBliss bliss_score bliss_score_prepared "
    "clip_ad_score energy_score entropy_score explain_bliss explain_bliss_prepared external_text_score "
    "fit_moments init_moments internal_class_score knn_score mahalanobis_score "
    "max_cosine_score max_logit_score mcm_score merge_moments msp_score neglabel_score "
    "pad_dictionary prepare_bliss psum_moments top_k_similar update_moments "
    "whitened_bliss_score",
    "text": "fill_prompt load_dictionary",
}
_MODULE = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_MODULE)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE})
