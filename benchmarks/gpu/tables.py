"""Short tables of the numbers in `results.jsonl`."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.gpu.architectures import ARCHITECTURES
from benchmarks.gpu.cases import cases
from benchmarks.gpu.floors import Card, card_of, floor_seconds, works
from benchmarks.measure import Table

Records = Mapping[str, Mapping[str, Any]]
BLANK = ""


def tables(records: Records) -> list[Table]:
    """Returns the tables that have rows, and a list of the cases that have no complete numbers."""
    makers: tuple[Callable[[Records], Table], ...] = (
        ceiling_table,
        encoders_table,
        transformations_table,
        variants_table,
        embedding_table,
        cifar10_table,
        scores_table,
        selectors_table,
        prompts_table,
        kernels_table,
        parts_table,
    )
    found = [table for make in makers if (table := make(records)).rows]
    return [*found, missing_table(records)]


def best_rate(records: Records) -> float | None:
    """Returns the best measured rate of bfloat16 products, in operations per second."""
    measured = records.get("ceiling", {})
    rates = [x for name, x in measured.items() if name.startswith("flops of bfloat16")]
    return max(rates, default=None)


def _card(records: Records) -> Card | None:
    return card_of(records.get("machine", {}).get("device", ""))


def _share(value: float | None, whole: float | None) -> str:
    return f"{100 * value / whole:.0f} %" if value and whole else BLANK


def _number(value: float | None, digits: str = ",.0f") -> str:
    return BLANK if value is None else f"{value:{digits}}"


def _floor_share(records: Records, name: str, seconds: float | None) -> str:
    """Returns the share of the floor in the measured seconds; blank for an unknown card or `--quick`."""
    card = _card(records)
    if card is None or seconds is None or records["machine"].get("quick"):
        return BLANK
    return _share(floor_seconds(works()[name], card)[0], seconds)


def ceiling_table(records: Records) -> Table:
    """Measured rates of the device."""
    rows = []
    for name, value in records.get("ceiling", {}).items():
        if name.startswith("flops of "):
            rows.append((name.removeprefix("flops of "), f"{value / 1e12:.4g} TFLOP/s"))
        elif name in ("bandwidth", "host_to_device"):
            rows.append((name.replace("_", " "), f"{value / 1e9:.4g} GB/s"))
    return Table("Limits of the device, measured", ("limit", "rate"), tuple(rows))


def encoders_table(records: Records) -> Table:
    """Vision towers in bfloat16, beside PyTorch."""
    rows = []
    for name in ARCHITECTURES:
        ours, theirs = records.get(f"encoder {name}", {}), records.get(f"torch {name}", {})
        if not (ours or theirs):
            continue
        rate = ours.get("images_per_s")
        flops = rate * ours["flops_per_image"] if rate else None
        compiled = theirs.get("compiled_images_per_s")
        seconds = ours.get("seconds", {}).get("median")
        rows.append(
            (
                name,
                _number(ours.get("batch") or theirs.get("batch")),
                _number(rate),
                _number(flops / 1e12 if flops else None, ".4g"),
                _share(flops, best_rate(records)),
                _floor_share(records, f"encoder {name}", seconds),
                _number(theirs.get("eager_images_per_s")),
                _number(compiled),
                _number(rate / compiled if rate and compiled else None, ".2f"),
                _number(theirs.get("cosine"), ".6f"),
                _number(theirs.get("centred"), ".4f"),
                _number(ours.get("first_call_s"), ".0f"),
                _number(theirs.get("torch_compile_s"), ".0f"),
            )
        )
    headings = ("model", "batch", "images/s", "TFLOP/s", "of measured product", "of floor's rate")
    headings += ("PyTorch eager, images/s", "torch.compile, images/s", "ratio to torch.compile")
    headings += ("smallest cosine", "centred", "first call, s", "torch.compile, s")
    return Table(
        "Vision towers, bfloat16, pixels on the device",
        headings,
        tuple(rows),
        ("cosines: between the library in bfloat16 and PyTorch in float32, the same weights",),
    )


def transformations_table(records: Records) -> Table:
    """Differences of embeddings and gradients under JAX's transformations."""
    numbers = records.get("transformations", {})
    rows = [
        (name, _number(x["difference"], ".2e"))
        for name, x in numbers.items()
        if isinstance(x, dict)
    ]
    title = "Transformations of `encode_image`, two layers in bfloat16"
    notes = ("largest difference to a plain call in float32",)
    return Table(title, ("transformation", "difference"), tuple(rows), notes)


def variants_table(records: Records) -> Table:
    """Towers with replaced functions or XLA flags."""
    rows, compared = [], set()
    for name, numbers in records.items():
        if "as_it_is_images_per_s" in numbers:
            compared.add(numbers["compared_with"])
            rows.append(
                (
                    name,
                    _number(numbers.get("images_per_s")),
                    _number(numbers.get("ratio"), ".2f"),
                    _number(numbers.get("cosine"), ".6f"),
                    _number(numbers.get("centred"), ".4f"),
                )
            )
        elif name.startswith("flags "):
            usual = records.get("encoder L/14", {}).get("images_per_s")
            rate = numbers.get("images_per_s")
            ratio = _number(rate / usual if rate and usual else None, ".2f")
            rows.append((f"L/14, {name}", _number(rate), ratio, BLANK, BLANK))
    notes = [f"cosines: to {' or '.join(sorted(compared))}"] if compared else []
    headings = ("variant", "images/s", "ratio to the library", "smallest cosine", "centred")
    return Table("Variants of the vision towers", headings, tuple(rows), tuple(notes))


def embedding_table(records: Records) -> Table:
    """Images per second from uint8 to embeddings."""
    rows = []
    for name, numbers in records.items():
        alone = numbers.get("encoder_images_per_s")
        if name.startswith("embed_images ") and alone:
            rate = numbers.get("images_per_s")
            what = f"embed_images, uint8 {name.split()[1]} square on the host, B/32"
            rows.append((what, _number(rate), _share(rate, alone)))
        elif name.startswith("from uint8 ") and alone:
            model = name.removeprefix("from uint8 ")
            for key, rate in numbers.items():
                if key.startswith("images_per_s of "):
                    size = key.removeprefix("images_per_s of ")
                    what = f"encode_images, uint8 {size} on the device, {model}"
                    rows.append((what, _number(rate), _share(rate, alone)))
    headings = ("path", "images/s", "of the encoder alone")
    return Table("From uint8 images to embeddings, bfloat16", headings, tuple(rows))


def cifar10_table(records: Records) -> Table:
    """Seconds of CIFAR-10's whole evaluation by stage."""
    runs = [x for x in records.get("cifar10", {}).values() if isinstance(x, dict)]
    stages = dict.fromkeys(stage for run in runs for stage in run)
    rows = tuple(
        (stage.removesuffix("_s"), *(_number(run.get(stage), ".2f") for run in runs))
        for stage in stages
    )
    headings = ("stage", "first run, s", "second run, s")[: 1 + len(runs)]
    notes = ("B/16, 60,000 synthetic images, all scores, 25 splits; aim: 10 s without compilation",)
    return Table("CIFAR-10's whole evaluation", headings, rows, notes)


def scores_table(records: Records) -> Table:
    """Seconds of top-k and BLISS beside the similarity product."""
    rows = []
    for name, numbers in records.items():
        if not name.startswith("scores ") or "images" not in numbers:
            continue
        product, nearest, bliss = (
            numbers.get(kind, {}).get("seconds") for kind in ("product", "top k", "bliss")
        )
        cells = [_number(1e3 * product if product else None, ".4g")]
        for kind, seconds in (("top k", nearest), ("bliss", bliss)):
            cells += [
                _number(1e3 * seconds if seconds else None, ".4g"),
                _number(seconds / product if seconds and product else None, ".2f"),
                _floor_share(records, f"{name}, {kind}", seconds),
            ]
        rows.append((f"{numbers['texts']:,}", f"{numbers['images']:,}", *cells))
    headings = (
        "texts",
        "images",
        "product, ms",
        "top k, ms",
        "ratio to product",
        "of floor's rate",
    )
    headings += ("BLISS, ms", "ratio to product", "of floor's rate")
    return Table("Scores, float32, embeddings on the device", headings, tuple(rows))


def selectors_table(records: Records) -> Table:
    """Ways to find the nearest texts."""
    rows = []
    for name, numbers in records.items():
        if name.startswith("top k of "):
            for way, found in numbers.items():
                if isinstance(found, dict):
                    cells = f"{1e3 * found['seconds']:.4g}", f"{found['recall']:.5f}"
                    rows.append((name.removeprefix("top k of "), way, *cells))
    return Table("Ways to find the top k", ("texts", "way", "ms", "recall"), tuple(rows))


def prompts_table(records: Records) -> Table:
    """Prompts per second."""
    rows = []
    for name, numbers in records.items():
        if name.startswith(("prompts B", "prompts L", "prompts in full")):
            for way, found in numbers.items():
                if isinstance(found, dict):
                    rows.append(
                        (
                            name.rsplit(" ", 1)[1],
                            way if "prompts" in way else f"the first, at {way} each",
                            _number(1e3 * found["seconds"], ".4g"),
                            _number(found["prompts_per_s"]),
                            _number(found.get("shapes")),
                            _number(found.get("first_call_s"), ".1f"),
                            _number(found.get("cosine"), ".6f"),
                        )
                    )
    headings = ("model", "prompts", "ms", "prompts/s", "shapes", "first call, s", "smallest cosine")
    return Table("Text towers, bfloat16", headings, tuple(rows))


def kernels_table(records: Records, most: int = 12) -> Table:
    """Kernels that take most of the device's time."""
    rows = []
    for name, numbers in records.items():
        if name.startswith("profile ") and "by_kernel" in numbers:
            total = 1e3 * numbers["device_s"]
            model = name.removeprefix("profile ")
            rows.append((model, "all kernels", f"{total:.2f}", f"{numbers['kernels']:.0f}", BLANK))
            for kernel, found in list(numbers["by_kernel"].items())[:most]:
                share = _share(found["ms"], total)
                rows.append(
                    (model, kernel[:60], f"{found['ms']:.2f}", f"{found['launches']:.0f}", share)
                )
    headings = ("model", "kernel", "ms per batch", "launches", "share")
    return Table("Time by kernel", headings, tuple(rows))


def parts_table(records: Records) -> Table:
    """Each kind of layer alone, against the measured rates."""
    rows = []
    peak, bandwidth = best_rate(records), records.get("ceiling", {}).get("bandwidth")
    for kind, part in records.get("roofline L/14", {}).items():
        if not isinstance(part, dict):
            continue
        seconds, flops = part["seconds"], part["flops"]
        roof = max(flops / peak, part["bytes"] / bandwidth) if peak and bandwidth else None
        rows.append(
            (
                kind, str(part["number"]), f"{1e3 * seconds:.3g}", f"{flops / 1e9:.4g}",
                f"{part['bytes'] / 1e6:.4g}", f"{flops / seconds / 1e12:.3g}",
                _share(flops / seconds, peak), _share(roof, seconds),
            )
        )  # fmt: skip
    headings = ("layer", "times", "ms", "GFLOP", "MB", "TFLOP/s", "of measured product", "of roof")
    notes = ("of roof: shortest time by operations and bytes, over the time taken",)
    return Table("Layers of L/14, each alone", headings, tuple(rows), notes)


def missing_table(records: Records) -> Table:
    """Cases without complete numbers, with the reason."""
    rows = tuple(
        (name, record["status"], record.get("reason", BLANK)[:110])
        for name, record in records.items()
        if record.get("status") not in (None, "measured")
    )
    notes = () if rows else ("all cases that were chosen were measured",)
    return Table("Cases without complete numbers", ("case", "status", "reason"), rows, notes)


def cases_table(records: Records) -> Table:
    """Every case with its seconds and compilations."""
    expected = {name: case.expected_s for name, case in cases().items()}
    rows = tuple(
        (
            name,
            record["status"],
            _number(record.get("took_s"), ".0f"),
            _number(expected.get(name), ".0f"),
            _number(record.get("programs")),
            _number(record.get("cache_hits")),
            _number(record.get("compile_s"), ".1f"),
        )
        for name, record in records.items()
        if "status" in record
    )
    headings = (
        "case",
        "status",
        "s",
        "expected, s",
        "programs",
        "from the cache",
        "compilation, s",
    )
    return Table("Cases", headings, rows)
