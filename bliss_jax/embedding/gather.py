"""Computes the missing shards of an embedding, divided among processes, and gathers all shards.

The work is divided into shards (`shards.py`) and batches in the same way with and without a cache and for
any number of processes. Interrupted runs and runs with several processes (`distributed.py`) therefore give
the same bits as a single uninterrupted run. Each process embeds a contiguous part of the shards that no
process has. Afterwards all shards are gathered, one shard per process at a time.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bliss_jax.embedding.distributed import exchange, failing_together
from bliss_jax.embedding.progress import Progress
from bliss_jax.embedding.shards import (
    JoinedShards,
    Shard,
    ShardFolder,
    Span,
    decode_shard,
    encode_shard,
    key_digest,
)
from bliss_jax.storage import package_versions


def gather_shards(
    cut: tuple[Span, ...],
    name: str,
    key: Mapping[str, Any],
    content: Callable[[], str],
    cache: Path | None,
    embed: Callable[[Sequence[Span], Progress], Iterator[tuple[Span, Shard]]],
    progress: Progress | None,
) -> Shard:
    """Reads the cached shards, embeds a part of the missing ones in each process, and gathers all.

    Args:
        cut: All spans.
        name: Name of the shards, as for `ShardFolder`.
        key: Key as for `ShardFolder`, without the results of `content` and `_computed_with`.
        content: Returns the SHA-256 of the input. It is called only if there is a cache or several
            processes.
        cache: Folder of the cache, as for `embed_images`.
        embed: Embeds the given spans and yields them as shards in order.
        progress: Called with numbers of finished rows.

    Returns:
        All rows as one shard.

    Raises:
        ValueError: A shard is damaged, or the processes embed different inputs.
        OSError: A shard cannot be written.
    """
    report = progress or (lambda done: None)
    rank, processes = jax.process_index(), jax.process_count()
    have = JoinedShards(cut[-1].stop if cut else 0)
    folder = None
    with failing_together():
        if cache is not None or processes > 1:
            key = {**key, "content_sha256": content(), "computed_with": _computed_with()}
            # A round trip through JSON turns tuples into lists, so that the key equals one from a file.
            key = json.loads(json.dumps(key))
        if cache is not None:
            folder = ShardFolder(Path(cache), name, key)
            for span in cut:
                if (shard := folder.read(span)) is not None:
                    have[span] = shard
    view = {"key": key_digest(key), "have": [i for i, span in enumerate(cut) if span in have]}
    views = [json.loads(v) for v in exchange(json.dumps(view).encode())]
    if others := [i for i, v in enumerate(views) if v["key"] != view["key"]]:
        raise ValueError(
            f"the input of process {rank} differs from that of processes {others}: images, labels, weights, "
            "versions and kind of device must be the same in all processes (files in a folder must also "
            "have the same modification times)"
        )
    owners: dict[int, list[int]] = {i: [] for i in range(len(cut))}
    for process, v in enumerate(views):
        for i in v["have"]:
            owners[i].append(process)
    missing = [i for i in owners if not owners[i]]
    for process, part in enumerate(np.array_split(np.array(missing, np.int64), processes)):
        for i in part.tolist():
            owners[i] = [process]

    with failing_together():
        if have:
            report(sum(len(shard.rows) for shard in have.values()))
        mine = [cut[i] for i in missing if owners[i] == [rank]]
        if folder is not None and mine:
            folder.prepare()
        _collect(embed(mine, report), have, folder)
    # A shard is sent by the owner with the fewest shards to send, unless all processes have it.
    queues: list[list[int]] = [[] for _ in range(processes)]
    for i, process in owners.items():
        if len(process) < processes:
            queues[min(process, key=lambda p: len(queues[p]))].append(i)
    for turn in range(max(map(len, queues))):
        own = queues[rank][turn : turn + 1]
        messages = exchange(b"".join(encode_shard(have[cut[i]], cut[i], key) for i in own))
        for queue, message in zip(queues, messages, strict=True):
            for i in queue[turn : turn + 1]:
                if cut[i] not in have:
                    have[cut[i]] = decode_shard(message, cut[i], key)
                    report(len(have[cut[i]].rows))
    return have.joined()


def _collect(
    embedded: Iterator[tuple[Span, Shard]], have: JoinedShards, folder: ShardFolder | None
) -> None:
    """Adds the embedded shards to `have`, and writes each one while the next is computed."""
    with ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        for span, shard in embedded:
            have[span] = shard
            if writing is not None:
                writing.result()
            if folder is not None:
                writing = writer.submit(folder.write, span, shard)
        if writing is not None:
            writing.result()


def _computed_with() -> dict[str, str]:
    """Returns the versions and the device, on which the last bits of an embedding depend."""
    packages = ("bliss-jax", "jax", "jaxlib", "flax", "numpy", "device")
    return {"pillow": version("pillow")} | {name: package_versions()[name] for name in packages}
