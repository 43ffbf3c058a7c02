"""The text tower at several lengths, and images streamed from the host to embeddings."""

import time

import jax
import jax.numpy as jnp
import numpy as np

import bliss_jax as bj
from benchmarks.gpu.architectures import architectures, best_batch, stored_in, time_encoder
from benchmarks.gpu.measuring import Found, Settings, Sheet, agreement, clock, cosines
from benchmarks.measure import Table
from bliss_jax.models.clip import CLIPConfig
from bliss_jax.models.preprocessing import preprocess
from bliss_jax.models.untrained import untrained_params


def prompt_tokens(number: int, config: CLIPConfig) -> np.ndarray:
    """Random token ids [number, context]: start, about eight words, end, then the end token as padding."""
    rng = np.random.default_rng(0)
    text = config.text
    lengths = np.clip(
        rng.normal(10, 2, number).round().astype(int), 6, text.max_position_embeddings
    )
    tokens = rng.integers(1, text.vocab_size - 2, (number, text.max_position_embeddings))
    tokens[:, 0] = text.vocab_size - 2
    tokens[np.arange(tokens.shape[1]) >= lengths[:, None] - 1] = text.eos_token_id
    return tokens.astype(np.int32)


def buckets(tokens: np.ndarray, end: int, step: int) -> list[np.ndarray]:
    """Rows by length up to the end token, in multiples of `step`, each group cut to its length."""
    lengths = (tokens == end).argmax(axis=1) + 1
    rounded = np.minimum(-(-lengths // step) * step, tokens.shape[1])
    return [tokens[rounded == length][:, :length] for length in np.unique(rounded)]


def texts(settings: Settings, found: Found) -> Table:
    """1,860 prompts at 77 tokens, at the longest prompt's length, and by length."""
    number = 64 if settings.quick else 1860
    headings = "model | tokens per prompt | shapes compiled | ms | prompts/s | ratio to 77"
    sheet = Sheet(settings, f"Text tower, {number:,} prompts, bfloat16", headings)
    for name in ("B/32", "L/14"):
        config = architectures(settings.quick)[name].config
        params, end = stored_in(untrained_params(config), "bfloat16"), config.text.eos_token_id
        tokens = prompt_tokens(number, config)
        longest = int((tokens == end).argmax(axis=1).max()) + 1
        encode = jax.jit(lambda params, tokens, c=config: bj.encode_text(params, c, tokens))
        cuts = {
            "77": [tokens],
            f"longest prompt, {longest}": [tokens[:, :longest]],
            "by length, in steps of 4": buckets(tokens, end, 4),
        }
        taken = []
        for kind, groups in cuts.items():

            def run(encode=encode, params=params, groups=groups):
                given = [jnp.asarray(group) for group in groups]
                return clock(lambda: [encode(params, group) for group in given], settings.quick)

            def cells(timing, name=name, kind=kind, taken=taken):
                taken.append(timing.median)
                sheet.data[f"{name}, {kind}"] = {"seconds": timing.median}
                rate = f"{number / timing.median:,.0f}"
                return f"{1e3 * timing.median:.4g}", rate, f"{taken[0] / timing.median:.2f}"

            sheet.add((name, kind, len(groups)), run, cells)

        def compare(encode=encode, params=params, tokens=tokens, longest=longest):
            return agreement(encode(params, tokens[:, :longest]), encode(params, tokens))

        sheet.note(f"{name}, cut against 77 tokens", compare, cosines)
    return sheet.table()


def stream(settings: Settings, found: Found) -> Table:
    """Images from the host as uint8 32 x 32, resized and encoded on the device, two batches in flight."""
    architecture = architectures(settings.quick)["B/32"]
    config, batch = architecture.config, best_batch(found, "B/32", architecture)
    number = 1024 if settings.quick else 1_000_000
    number -= number % batch
    stored = stored_in(untrained_params(config), "bfloat16")
    size = config.vision.image_size
    # One pool over and over, larger than the host's caches.
    pool = np.random.default_rng(0).integers(0, 256, (min(number, 64 * batch), 32, 32, 3), np.uint8)
    program = jax.jit(
        lambda params, images: bj.encode_image(params, config, preprocess(images, size))
    )
    on_device = jax.device_put(pool[:batch])
    alone = clock(lambda: program(stored, on_device), settings.quick).median
    encoder = time_encoder(config, stored, batch, settings).median
    started, sending, waiting, done, pending = time.perf_counter(), 0.0, 0.0, 0, []
    while done < number and not settings.spent():
        place = done % len(pool)
        before = time.perf_counter()
        pending.append(program(stored, jax.device_put(pool[place : place + batch])))
        sending += time.perf_counter() - before
        done += batch
        if len(pending) > 2:
            before = time.perf_counter()
            np.asarray(pending.pop(0))
            waiting += time.perf_counter() - before
    for embeddings in pending:
        np.asarray(embeddings)
    total = time.perf_counter() - started
    idle = total - done / batch * alone
    title, headings = "Stream from the host, B/32, bfloat16", "what | images/s | share of encoder"
    sheet = Sheet(settings, title, headings)
    rates = {
        "encoder alone, pixels on the device": batch / encoder,
        "resize and encode, uint8 on the device": batch / alone,
        "uint8 on the host to embeddings on the host": done / total,
    }
    for what, rate in rates.items():
        sheet.add(
            (what,),
            lambda rate=rate: rate,
            lambda rate: (f"{rate:,.0f}", f"{rate * encoder / batch:.2f}"),
        )
    sheet.notes += [
        f"{done:,} images of 32 x 32 in batches of {batch}, {total:.3g} s; the device waited {idle:.3g} s "
        "of them: the total less batches times resize and encode alone",
        f"the host took {sending:.3g} s to send and launch, and waited {waiting:.3g} s for results",
    ]
    sheet.data |= rates | {"images": done, "seconds": total, "device_waited_s": idle}
    sheet.data |= {"host_sending_s": sending, "host_waited_s": waiting, "batch": batch}
    return sheet.table()
