"""Computes the cost of embedding and scoring a billion images from measured rates.

    python -m benchmarks.billion [--measure] [--images-folder DIR] [--gpu-results FILE] [--encode-rate X] ...

The command runs from the repository's root. Every rate is measured or given as an option. A rate that is
neither is unknown: its cell and all cells that depend on it stay blank.

`--measure` measures on this machine's CPU: the rate of B/32 in bfloat16, the rate of the scores, and the
memory that reading an embeddings file takes. `--images-folder` measures how fast one thread decodes the
images below a folder. `--gpu-results` reads `results.jsonl` in the output folder of `benchmarks.gpu`. A rate
that is given as an option replaces a measured one. Powers are never measured; they are options.

docs/one_billion_images.md explains the numbers.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gpu.results import read_results
from benchmarks.measure import (
    Table,
    in_fresh_process,
    median,
    peak_memory,
    reset_peak_memory,
    resident_memory,
    seconds,
)

BLANK = ""
_TEXTS, _CLASSES, _K = 1_860, 10, 10


class Rate(NamedTuple):
    """Unit and meaning of an input."""

    unit: str
    meaning: str


INPUTS = {
    "image-bytes": Rate("bytes", "one image file"),
    "sent-bytes": Rate("bytes", "one image as it goes to the device, uint8"),
    "embedding-bytes": Rate("bytes", "one embedding as it is stored"),
    "read-rate": Rate("bytes/s", "reading image files, one drive or one share of the network"),
    "decode-rate": Rate("images/s", "decoding, one core"),
    "send-rate": Rate("bytes/s", "host to device, one link"),
    "encode-rate": Rate("images/s", "the encoder, one device"),
    "score-rate": Rate("images/s", "BLISS on embeddings, one device"),
    "write-rate": Rate("bytes/s", "writing embeddings, one drive"),
    "device-watts": Rate("W", "one device at work"),
    "core-watts": Rate("W", "one core at work"),
}
"""Inputs by the name of their option."""

Values = dict[str, tuple[float, str]]
"""Name of an input to its value and its source. Unknown inputs are missing."""


class Stage(NamedTuple):
    """A step that every image passes."""

    name: str
    unit: str
    rate: float | None
    """Images per second of one unit."""
    bytes_per_image: float | None
    watts: float | None


def stages(values: Values) -> list[Stage]:
    """Returns the steps from image files to scores, in order."""

    def get(name: str) -> float | None:
        return values[name][0] if name in values else None

    def per_image(rate: str, size: str) -> float | None:
        flow, amount = get(rate), get(size)
        return flow / amount if flow and amount else None

    core, device = get("core-watts"), get("device-watts")
    read = per_image("read-rate", "image-bytes")
    sent = per_image("send-rate", "sent-bytes")
    written = per_image("write-rate", "embedding-bytes")
    return [
        Stage("read", "drive", read, get("image-bytes"), None),
        Stage("decode", "core", get("decode-rate"), None, core),
        Stage("send", "link", sent, get("sent-bytes"), None),
        Stage("encode", "device", get("encode-rate"), None, device),
        Stage("score", "device", get("score-rate"), None, device),
        Stage("write", "drive", written, get("embedding-bytes"), None),
    ]


def hours(stage: Stage, images: float) -> float | None:
    """Returns the hours for which one unit of a stage is busy with a number of images."""
    return images / stage.rate / 3600 if stage.rate else None


def kilowatt_hours(stage: Stage, images: float) -> float | None:
    """Returns the energy that one unit of a stage uses in these hours."""
    busy = hours(stage, images)
    return busy * stage.watts / 1000 if busy is not None and stage.watts else None


def units_per_encoder(stage: Stage, encode_rate: float | None) -> float | None:
    """Returns the number of units of a stage that keep up with one encoding device."""
    return encode_rate / stage.rate if stage.rate and encode_rate else None


def bottlenecks(table: list[Stage], units: dict[str, float]) -> list[tuple[str, float]]:
    """Returns the known stages with the images per second of all their units, the slowest first.

    Encoding and scoring share the devices. They count as one stage, and their times per image add up.

    Args:
        table: The stages.
        units: Numbers of drives, cores, links and devices. Stages of a kind that is missing are left out.
    """
    rates = {}
    for stage in table:
        if not stage.rate or stage.unit not in units:
            continue
        name = "encode and score" if stage.unit == "device" else stage.name
        taken = 1 / (stage.rate * units[stage.unit])
        rates[name] = rates.get(name, 0.0) + taken
    return sorted(((name, 1 / taken) for name, taken in rates.items()), key=lambda pair: pair[1])


def smallest_shift_seen(count: float, batch: float, mean: float) -> float:
    """Returns the smallest shift of a batch's mean that changes a class's float32 mean when they are merged.

    `merge_moments` adds (batch / count) shift to the mean. A sum in float32 rounds away everything
    below half of the distance between neighbouring numbers. Hence:

        shift >= ulp(mean) / 2 * count / batch
    """
    return float(np.spacing(np.float32(mean))) / 2 * count / batch


def limits(
    dim: int, batch: int, memory: float, load_factor: float | None
) -> list[tuple[str, str, str]]:
    """Returns design choices, the number of images at which each fails, and its cost at a billion images.

    Args:
        dim: Dimensions of an embedding.
        batch: Images of one class per merge of moments.
        memory: Bytes of the host's memory.
        load_factor: Peak memory of reading an embeddings file, as a multiple of the embeddings' size. None
            if it is unknown.
    """
    size = 4 * dim
    typical = dim**-0.5
    seen = smallest_shift_seen(1e9, batch, typical)
    # A shift by a hundredth of a coordinate's typical size.
    unseen = 0.01 * typical / smallest_shift_seen(1, batch, typical)
    reading = BLANK, BLANK
    if load_factor:
        peak = load_factor * size
        reading = f"{memory / peak:.3g}", f"{peak * 1e9 / 1e12:.3g} TB"
    letters = len("class_name/000000000.jpg")
    name_bytes = 8 + "".__sizeof__() + letters  # a pointer in a list, and a string
    return [
        ("embeddings read whole from one `.npz`", reading[0], reading[1]),
        (
            "embeddings of one run held in memory, then concatenated",
            f"{memory / (2 * size):.3g}",
            f"{2 * size * 1e9 / 1e12:.3g} TB",
        ),
        (
            f"file names of a folder held as strings of {letters} letters",
            f"{memory / name_bytes:.3g}",
            f"{name_bytes * 1e9 / 1e9:.3g} GB",
        ),
        (
            f"float32 means merged in batches of {batch:,} images of a class: a shift by 1 % of a typical "
            "coordinate is lost",
            f"{unseen:.3g} of a class",
            f"shifts below {100 * seen / typical:.2g} % are lost",
        ),
        (
            "AUROC: twice the number of normal images as int32",
            f"{2**30:,} normal",
            "correct, even if all are normal",
        ),
        (
            "`ClassMoments.count` as float32, one image at a time",
            f"{2**24:,} of a class",
            "correct in batches of 64 and more",
        ),
        (
            f"positions of the {_K} nearest texts of all images of one call as int32",
            f"{2**31 // _K:,} in one call",
            "correct, in batches",
        ),
    ]


# Measured on this machine -----------------------------------------------------------------------


def measure_encoder() -> dict[str, tuple[float, str]]:
    """Measures B/32 in bfloat16 with batches of 32."""
    from benchmarks.gpu.architectures import time_untrained

    timing = time_untrained("B/32", 32)
    where = "measured here: B/32, bfloat16, CPU, batches of 32"
    return {"encode-rate": (32 / timing.median, where)}


def measure_scores() -> dict[str, tuple[float, str]]:
    """Measures BLISS with as many texts as the shipped dictionary, 10 classes, and 10,000 images at once."""
    import jax

    import bliss_jax as bj
    from benchmarks.synthetic import embeddings

    e = embeddings(train=5_000, test=10_000, texts=_TEXTS, classes=_CLASSES)
    moments = bj.fit_moments(e.train, e.train_labels, num_classes=_CLASSES)
    given = jax.device_put((e.test, e.labels, e.dictionary))
    score = jax.jit(lambda x, labels, dictionary: bj.bliss_score(x, labels, dictionary, moments))
    seconds(lambda: score(*given))
    taken = median([seconds(lambda: score(*given)) for _ in range(5)])
    where = f"measured here: CPU, {_TEXTS:,} texts, {_CLASSES} classes, 10,000 at once"
    return {"score-rate": (10_000 / taken, where)}


def measure_decoding(folder: Path, most: int = 1000) -> dict[str, tuple[float, str]]:
    """Measures how fast one thread decodes the first images below a folder, with their files in memory.

    Raises:
        ValueError: If the folder has no image files.
    """
    from bliss_jax.datasets import decode_image
    from bliss_jax.datasets.image_formats import SUFFIXES

    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)[:most]
    if not files:
        raise ValueError(f"{folder}: expected image files in it or below it, found none")
    contents = [(file.read_bytes(), file.name) for file in files]
    samples, pixels = [], 0
    for _ in range(3):
        start = time.perf_counter()
        pixels = sum(decode_image(*content).nbytes for content in contents)
        samples.append(time.perf_counter() - start)
    where = f"measured here: {len(files):,} files of {folder.name!r}"
    return {
        "decode-rate": (len(files) / median(samples), where),
        "image-bytes": (sum(len(content) for content, _ in contents) / len(files), where),
        "sent-bytes": (pixels / len(files), where + ", at their own size"),
    }


def measure_load_factor(rows: int = 100_000, dim: int = 512) -> float:
    """Returns the memory that `load_embeddings` needs at its peak, as a multiple of the embeddings' size."""
    from benchmarks.synthetic import embeddings
    from bliss_jax.embedding import EmbeddingSet, load_embeddings, save_embeddings

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "embeddings.npz"
        e = embeddings(train=rows, test=100, texts=100, classes=_CLASSES, dim=dim)
        names = tuple(map(str, range(100)))
        given = (e.train, e.train_labels, e.test, e.test_labels, names[:_CLASSES], e.labels, names)
        save_embeddings(EmbeddingSet(*given, e.dictionary), file)
        size = e.train.nbytes
        del e, given
        before = resident_memory()
        reset_peak_memory()
        loaded = load_embeddings(file)
        factor = (peak_memory() - before) / size
        del loaded
        return factor


def from_gpu(file: Path, encoder: str) -> Values:
    """Returns the rates of an encoder and of scores from the results of `benchmarks.gpu`.

    Raises:
        ValueError: If the file has no rate of this encoder, or has numbers of shrunken models.
    """
    records = read_results(file)
    if records["machine"]["quick"]:
        raise ValueError(f"{file}: expected full models, found numbers of --quick; run it without")
    where = f"{file.name}: {records['machine']['device']}"
    rate = records.get(f"encoder {encoder}", {}).get("images_per_s")
    if rate is None:
        known = [name for name in records if name.startswith("encoder ")]
        raise ValueError(f"{file}: expected the case 'encoder {encoder}', found {known}")
    values = {"encode-rate": (rate, f"{where}, {encoder}, bfloat16")}
    scores = records.get(f"scores {_TEXTS}", {}).get("bliss")
    if scores is not None:
        values["score-rate"] = (scores["images_per_s"], f"{where}, {_TEXTS:,} texts")
    return values


# Tables -----------------------------------------------------------------------------------------


def _number(value: float | None, digits: str = ".3g") -> str:
    if value is None:
        return BLANK
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:{digits}}"


def inputs_table(values: Values) -> Table:
    """Returns a table of all inputs with their values and sources."""
    rows = tuple(
        (
            f"`--{name}`",
            rate.meaning,
            _number(values[name][0]) if name in values else BLANK,
            rate.unit,
            values[name][1] if name in values else "unknown",
        )
        for name, rate in INPUTS.items()
    )
    return Table("Inputs", ("option", "meaning", "value", "unit", "source"), rows)


def costs_table(values: Values, images: float) -> Table:
    """Returns a table of the hours, bytes and energy of each stage."""
    encode = values["encode-rate"][0] if "encode-rate" in values else None
    rows = tuple(
        (
            stage.name,
            stage.unit,
            _number(stage.rate),
            _number(hours(stage, images)),
            _number(units_per_encoder(stage, encode)),
            _number(stage.bytes_per_image * images / 1e12 if stage.bytes_per_image else None),
            _number(kilowatt_hours(stage, images)),
        )
        for stage in stages(values)
    )
    headings = ("stage", "unit", "images/s of one", "hours of one")
    headings += ("units per encoding device", "TB", "kWh")
    notes = (
        "texts at which the product with the dictionary takes as many FLOPs as the encoder: "
        + texts_of_equal_cost(),
    )
    return Table(f"Cost of {images:,.0f} images", headings, rows, notes)


def texts_of_equal_cost() -> str:
    """Returns, for each encoder, how many texts take as many FLOPs per image as the encoder itself."""
    from benchmarks.gpu.architectures import ARCHITECTURES, vision_flops

    return ", ".join(
        f"{vision_flops(config) / (2 * config.projection_dim) / 1e6:.3g} million ({name})"
        for name, (config, _) in ARCHITECTURES.items()
    )


def bottlenecks_table(values: Values, units: dict[str, float], images: float) -> Table:
    """Returns a table of the stages, the slowest first.

    Each stage is the bottleneck once the stages above it have enough units.
    """
    rows = tuple(
        (name, _number(rate), _number(images / rate / 3600))
        for name, rate in bottlenecks(stages(values), units)
    )
    title = "Bottlenecks with " + ", ".join(f"{number:g} {unit}s" for unit, number in units.items())
    return Table(title, ("stage", "images/s", "hours"), rows)


def main() -> None:
    """Collects the inputs and prints the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.billion", description="The cost of a billion images."
    )
    parser.add_argument("--measure", action="store_true", help="measure on this machine's CPU")
    parser.add_argument("--images-folder", type=Path, help="images to measure decoding on")
    parser.add_argument("--gpu-results", type=Path, help="results.jsonl of benchmarks.gpu")
    parser.add_argument(
        "--encoder", default="B/32", help="encoder in --gpu-results; B/32 by default"
    )
    parser.add_argument("--images", type=float, default=1e9, help="images to embed")
    parser.add_argument("--dim", type=int, default=512, help="dimensions of an embedding")
    parser.add_argument(
        "--memory-bytes", type=float, default=256e9, help="memory of a host, for the limits"
    )
    parser.add_argument("--merge-batch", type=int, default=256, help="images of a class per merge")
    for unit in ("drive", "core", "link", "device"):
        parser.add_argument(
            f"--{unit}s", type=float, default=1.0, help=f"number of {unit}s; 1 by default"
        )
    for name, rate in INPUTS.items():
        parser.add_argument(f"--{name}", type=float, help=f"{rate.meaning}, {rate.unit}")
    given = parser.parse_args()

    values: Values = {"embedding-bytes": (4.0 * given.dim, f"float32, {given.dim} dimensions")}
    factor = None
    if given.measure:
        measurements: list[Callable[[], Any]] = [measure_encoder, measure_scores]
        for measure in measurements:
            values |= in_fresh_process(measure)
        factor = in_fresh_process(measure_load_factor)
    if given.images_folder is not None:
        values |= in_fresh_process(measure_decoding, given.images_folder)
    if given.gpu_results is not None:
        values |= from_gpu(given.gpu_results, given.encoder)
    options = vars(given)
    for name in INPUTS:
        if (value := options[name.replace("-", "_")]) is not None:
            values[name] = (value, "command line")

    units = {unit: options[f"{unit}s"] for unit in ("drive", "core", "link", "device")}
    broken = limits(given.dim, given.merge_batch, given.memory_bytes, factor)
    headings = ("design choice", "fails at images", f"at a billion images, {given.dim} dimensions")
    note = f"a host of {given.memory_bytes / 1e9:g} GB; peak memory of reading a file: " + (
        f"{factor:.2f} times its embeddings, measured" if factor else "unknown"
    )
    for table in (
        inputs_table(values),
        costs_table(values, given.images),
        bottlenecks_table(values, units, given.images),
        Table("Limits of the design", headings, tuple(broken), (note,)),
    ):
        print(f"{table.markdown()}\n", flush=True)


if __name__ == "__main__":
    main()
