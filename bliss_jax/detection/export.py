"""Detectors as programs that run without this library.

    images or embeddings [n, ...]  ->  scores float32 [n], p-values float32 [n], nearest class int32 [n]

The file is an uncompressed zip archive that `numpy.load` reads. It contains no pickle:

    program          the StableHLO program, serialized by `jax.export`
    metadata.json    class names, shapes, settings and provenance
    arrays/*.npy     parameters of the image tower, tables of the score, calibration images

The arrays are arguments of the program and not constants in it, because constants are slow to compile and are compiled
again for each n (`benchmarks/README.md`, "Attempts"). Serialized programs also cannot exceed the 2 GiB of flatbuffers.

The program handles `batch_size` images at once in a loop. Its memory is that of the arrays, of twice the input, and
of the activations of `batch_size` images, for any n. The last batch is padded, so the encoder's shapes are the same for
any n.

Ties: p-values count calibration scores of at least s(x), and the guarantee needs the tie if an image equals a
calibration image (`ties.py`). The detector computed the calibration scores with another program, which rounds
differently. If an embedding equals a calibration embedding up to rounding, the program therefore returns the score and
the nearest class of that calibration image, as the detector computed them.

A score other than BLISS has no nearest class: the program returns -1. The prepared arrays of the score are in the file
(`prepared_score.py`), so the program contains neither a Cholesky factorisation nor another custom call of the
preparation, and the same program runs on all platforms.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from bliss_jax import _require
from bliss_jax.detection.chosen_score import BLISS, is_of_library
from bliss_jax.detection.file_format import encode_detector
from bliss_jax.detection.platforms import PLATFORMS
from bliss_jax.detection.prepared_score import arrays_by_name, score_images
from bliss_jax.detection.ties import rounding_of
from bliss_jax.embedding import is_model
from bliss_jax.scores import (
    PreparedBliss,
    Score,
    conformal_p_values,
    explain_bliss_prepared,
    images_needed,
)
from bliss_jax.storage import package_versions, replacing

if TYPE_CHECKING:
    from bliss_jax.detection.answers import DetectorAnswers

Inputs = Literal["images", "embeddings"]

FORMAT = 1
ALPHAS = (0.1, 0.05, 0.01, 0.001)
"""False-alarm rates whose thresholds are in the metadata."""

_EMBEDDINGS = 128
"""Default number of embeddings that are scored at once."""
_NORM_TOLERANCE = 1e-3
_BITS = {jnp.dtype("bfloat16"): np.uint16}
"""NumPy's files have no bfloat16, so its bits are stored."""

_Arrays = dict[str, np.ndarray]


class _Program(NamedTuple):
    """A function of one batch, its arrays and the shape of an input."""

    embed: Callable[[Mapping[str, Any], jax.Array], jax.Array]
    """Function of the encoder's parameters and a batch of inputs. It returns embeddings."""
    params: Mapping[str, Any]
    shape: tuple[int, ...]
    dtype: str


def export_detector(
    detector: "DetectorAnswers",
    path: Path,
    *,
    inputs: Inputs,
    platforms: Sequence[str],
    batch_size: int | None,
) -> None:
    """Writes a detector as a program; see `Detector.export`."""
    platforms = _check_platforms(platforms)
    if inputs not in get_args(Inputs):
        raise ValueError(f"inputs: expected 'images' or 'embeddings', got {inputs!r}")
    if batch_size is None:
        batch_size = detector.images_per_device if inputs == "images" else _EMBEDDINGS
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    program = _of_images(detector) if inputs == "images" else _of_embeddings(detector)
    _require("flatbuffers", "export")
    score = _bliss(detector) if detector.score_name == BLISS else _other(detector)
    arrays = _arrays(detector, program, score)
    whole = _whole(detector, program, score, batch_size)
    try:
        content = _serialized(whole, program, arrays, platforms)
    except (ValueError, NotImplementedError) as error:
        if score.own is None:
            raise
        raise ValueError(
            f"the score {detector.score_name!r} ({score.own.place}) cannot be exported, because a program of JAX alone "
            f"cannot contain everything that its function calls: {error}"
        ) from error
    metadata = _metadata(detector, inputs, program, batch_size, platforms)
    with replacing(path) as file:
        _write(file, content, metadata, arrays)


def _check_platforms(platforms: Sequence[str]) -> tuple[str, ...]:
    """Returns the platforms without repetitions."""
    names = tuple(dict.fromkeys([platforms] if isinstance(platforms, str) else platforms))
    unknown = [name for name in names if name not in PLATFORMS]
    if not names or unknown:
        found = f"got {', '.join(map(repr, unknown))}" if unknown else "got none"
        raise ValueError(f"platforms: expected some of {', '.join(PLATFORMS)}, {found}")
    return names


def _of_images(detector: "DetectorAnswers") -> _Program:
    """Returns the program's encoder for images.

    Raises:
        ValueError: The detector's encoder is absent or not a `Model`.
    """
    model, advice = detector.model, "inputs='embeddings' exports a program for embeddings"
    if model is None:
        raise ValueError(
            "this detector has no encoder, which a program for images contains: add it with "
            f"with_model(load_model(...)); {advice}"
        )
    if not is_model(model):
        raise ValueError(
            f"expected a Model of this library as the encoder, because a program for images contains it, got "
            f"{model.name}; {advice}"
        )
    from bliss_jax.models import image_tower

    tower = image_tower(model, detector.preprocess)
    return _Program(tower.encode, tower.params, tower.image_shape, "uint8")


def _of_embeddings(detector: "DetectorAnswers") -> _Program:
    """Returns the program's first step for embeddings, which makes rows NaN that are not of unit norm."""

    def checked(_: Mapping[str, Any], rows: jax.Array) -> jax.Array:
        norm = jnp.linalg.norm(rows, axis=1, keepdims=True)
        return jnp.where(jnp.abs(norm - 1) <= _NORM_TOLERANCE, rows, jnp.nan)

    return _Program(checked, {}, (detector.embedding_dim,), "float32")


class _ScoreProgram(NamedTuple):
    """The score as a function of embeddings, and its arrays."""

    score: Callable[[Mapping[str, Any], jax.Array], tuple[jax.Array, jax.Array]]
    """Function of the arrays and of embeddings. It returns scores, and the nearest class or -1."""
    arrays: Mapping[str, Any]
    calibration: Mapping[str, Any]
    """Results for the calibration images, by name."""
    own: Score | None = None
    """The record of a score that is not in the library."""


def _bliss(detector: "DetectorAnswers") -> _ScoreProgram:
    k, weight = detector.k, detector.weight

    def score(arrays: Mapping[str, Any], embeddings: jax.Array) -> tuple[jax.Array, jax.Array]:
        prepared = PreparedBliss(**{"where": None, **arrays})
        why = explain_bliss_prepared(embeddings, prepared, k, weight=weight)
        return why.score.astype(jnp.float32), why.nearest_class.astype(jnp.int32)

    calibration = {}
    if len(detector.calibration_labels):
        known = explain_bliss_prepared(
            detector.calibration_embeddings, detector.prepared, k, weight=weight
        )
        calibration["nearest_class"] = np.asarray(known.nearest_class, np.int32)
    prepared = detector.prepared._asdict()
    arrays = {name: leaf for name, leaf in prepared.items() if leaf is not None}
    return _ScoreProgram(score, arrays, calibration)


def _other(detector: "DetectorAnswers") -> _ScoreProgram:
    """Returns a score other than BLISS. Its preparation is not in the program: its results are arrays."""
    prepared = detector.prepared_score
    arrays, structure = arrays_by_name(prepared), jax.tree.structure(prepared)
    names = tuple(arrays)

    def score(arrays: Mapping[str, Any], embeddings: jax.Array) -> tuple[jax.Array, jax.Array]:
        given = jax.tree.unflatten(structure, [arrays[name] for name in names])
        # Not every function of a user has the score NaN for an embedding of NaN.
        known = jnp.isfinite(embeddings).all(axis=1)
        found = jnp.where(known, score_images(embeddings, given), jnp.nan)
        return found, jnp.full(found.shape, -1, jnp.int32)

    own = None if is_of_library(prepared.record) else prepared.record
    return _ScoreProgram(score, arrays, {}, own)


def _arrays(detector: "DetectorAnswers", program: _Program, score: _ScoreProgram) -> _Arrays:
    """Returns the arrays of the file by name."""
    parts: dict[str, Any] = {f"encoder/{name}": leaf for name, leaf in program.params.items()}
    parts |= {f"score/{name}": leaf for name, leaf in score.arrays.items()}
    if len(detector.calibration_labels):
        parts["calibration/embeddings"] = detector.calibration_embeddings
        parts["calibration/scores"] = detector.calibration_scores
        parts |= {f"calibration/{name}": leaf for name, leaf in score.calibration.items()}
    stored = {}
    for name, leaf in parts.items():
        array = np.asarray(leaf)
        stored[f"arrays/{name}"] = array.view(_BITS.get(array.dtype, array.dtype))
    return stored


def _whole(
    detector: "DetectorAnswers", program: _Program, score_program: _ScoreProgram, batch_size: int
) -> Callable[[Mapping[str, jax.Array], jax.Array], tuple[jax.Array, ...]]:
    """Returns the function of the arrays and of inputs of any number that is exported."""
    dtypes = {f"arrays/encoder/{name}": leaf.dtype for name, leaf in program.params.items()}
    dtypes |= {f"arrays/score/{name}": leaf.dtype for name, leaf in score_program.arrays.items()}
    tolerance = rounding_of(detector.provenance)
    calibrated = bool(len(detector.calibration_labels))

    def of_batch(arrays: Mapping[str, jax.Array], rows: jax.Array) -> tuple[jax.Array, ...]:
        def part(prefix: str) -> dict[str, Any]:
            return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}

        embeddings = program.embed(part("arrays/encoder/"), rows)
        score, nearest = score_program.score(part("arrays/score/"), embeddings)
        p_values = jnp.full(score.shape, jnp.nan, jnp.float32)
        if calibrated:
            known = part("arrays/calibration/")
            row, distance = _nearest_known(embeddings, known["embeddings"])
            same = distance <= tolerance
            score = jnp.where(same, known["scores"][row], score)
            if "nearest_class" in known:
                nearest = jnp.where(same, known["nearest_class"][row], nearest)
            p_values = conformal_p_values(score, known["scores"])
        return score, p_values, jnp.where(jnp.isnan(score), -1, nearest)

    def of_all(arrays: Mapping[str, jax.Array], rows: jax.Array) -> tuple[jax.Array, ...]:
        arrays = {
            name: jax.lax.bitcast_convert_type(array, dtypes[name])
            if array.dtype != dtypes.get(name, array.dtype)
            else array
            for name, array in arrays.items()
        }
        number = rows.shape[0]
        padded = jnp.concatenate([rows, jnp.zeros((batch_size, *rows.shape[1:]), rows.dtype)])

        def step(i: jax.Array, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            start = i * batch_size
            batch = jax.lax.dynamic_slice_in_dim(padded, start, batch_size)
            return tuple(
                jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0)
                for whole, part in zip(found, of_batch(arrays, batch), strict=True)
            )

        found = tuple(
            jnp.zeros(number + batch_size, dtype) for dtype in (jnp.float32, jnp.float32, jnp.int32)
        )
        steps = jnp.asarray(-(-number // batch_size), jnp.int32)
        return tuple(whole[:number] for whole in jax.lax.fori_loop(0, steps, step, found))

    return of_all


def _nearest_known(rows: jax.Array, known: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the position of the nearest calibration embedding of each row, and its distance.

    Differences are computed directly, one row at a time: a distance from the inner product has an error of 5e-4,
    which is more than the tolerance.
    """

    def of_row(row: jax.Array) -> tuple[jax.Array, jax.Array]:
        distances = jnp.linalg.norm(known - row[None], axis=1)
        nearest = jnp.argmin(distances)
        return nearest, distances[nearest]

    return jax.lax.map(of_row, rows)


def _serialized(
    function: Callable, program: _Program, arrays: _Arrays, platforms: tuple[str, ...]
) -> bytes:
    """Returns the program for any number of inputs, serialized by `jax.export`."""
    from jax import export

    # A symbol is at least 1. The shape is one less than the symbol, so that n may be 0.
    (n,) = export.symbolic_shape("n_plus_1 - 1")
    rows = jax.ShapeDtypeStruct((n, *program.shape), program.dtype)
    shapes = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in arrays.items()}
    option = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, option)
    jax.config.update(option, ".*")  # the program does not contain paths of this machine
    try:
        exported = export.export(jax.jit(function), platforms=platforms)(shapes, rows)
    finally:
        jax.config.update(option, before)
    return bytes(exported.serialize())


def _metadata(
    detector: "DetectorAnswers",
    inputs: Inputs,
    program: _Program,
    batch_size: int,
    platforms: tuple[str, ...],
) -> dict[str, Any]:
    """Returns the description of the program as JSON values."""
    number = len(detector.calibration_labels)
    preprocessing = None
    if inputs == "images" and detector.model is not None and is_model(detector.model):
        preprocessing = detector.model.preprocessing_with(detector.preprocess).describe()
    return {
        "kind": "bliss_jax.exported_detector",
        "format": FORMAT,
        "inputs": {"name": inputs, "dtype": program.dtype, "shape": ["n", *program.shape]},
        "outputs": [
            {"name": "scores", "dtype": "float32", "shape": ["n"]},
            {"name": "p_values", "dtype": "float32", "shape": ["n"]},
            {"name": "nearest_class", "dtype": "int32", "shape": ["n"]},
        ],
        "class_names": list(detector.class_names),
        "score": detector.score_name,
        "batch_size": batch_size,
        "platforms": list(platforms),
        "preprocessing": preprocessing,
        "embedding_dim": detector.embedding_dim,
        "k": detector.k,
        "lambda": detector.weight,
        "shrinkage": detector.shrinkage,
        "prompt": detector.prompt,
        "calibration_images": number,
        "thresholds": {
            str(alpha): detector.threshold(alpha)
            for alpha in ALPHAS
            if number >= images_needed(alpha)
        },
        "model": detector.provenance.get("model"),
        "dictionary": detector.provenance.get("dictionary"),
        "detector_sha256": hashlib.sha256(encode_detector(detector)).hexdigest(),
        "versions": package_versions(),
    }


def _write(
    file: BinaryIO, program: bytes, metadata: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Writes the archive. Members have a fixed time stamp, and are not compressed."""

    def member(name: str) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(name)
        info.external_attr = 0o644 << 16
        return info

    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(member("program"), program)
        archive.writestr(member("metadata.json"), json.dumps(metadata, indent=1))
        for name, array in arrays.items():
            with archive.open(member(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
