"""Targets of the fuzzer: for each reader a function of bytes, valid inputs, and words for mutations."""

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SLOW = 5.0
"""Largest processor time per input in seconds, a thousand times the usual one. Processor time is measured
because wall-clock time depends on the load of the machine."""

CORPUS = Path(__file__).parent / "corpus"


class Target(NamedTuple):
    """A reader to fuzz."""

    read: Callable[[bytes], None]
    """Function that returns or raises ValueError; any other exception is a crash."""
    seeds: Sequence[bytes]
    """Valid inputs, from which mutations start."""
    words: Sequence[bytes]
    """Byte strings that mutations insert."""
    slow: float = SLOW
    """Largest processor time per input in seconds."""

    def outcome(self, content: bytes) -> str:
        """Returns "accepted" or "refused".

        Raises:
            Exception: The input is a crash.
        """
        start = time.process_time()
        try:
            self.read(content)
        except ValueError:
            found = "refused"
        else:
            found = "accepted"
        seconds = time.process_time() - start
        if seconds > self.slow:
            raise AssertionError(f"took {seconds:.1f} s, expected at most {self.slow} s")
        return found


def corpus_files(name: str) -> list[Path]:
    """Returns the files of a target in the corpus."""
    folder = CORPUS / name
    return sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []


@cache
def _file(name: str) -> Path:
    """Returns a temporary file, in memory if the system has /dev/shm."""
    memory = Path("/dev/shm")  # noqa: S108 (only this process uses the folder that is created in it)
    folder = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
    _folders.append(folder)
    return Path(folder.name) / name


_folders: list[tempfile.TemporaryDirectory] = []


def _sealed(kind: str, text: str, arrays: Mapping[str, np.ndarray]) -> bytes:
    """Seals any text and arrays with a valid hash, like `bliss_jax.storage.seal`."""
    from safetensors.numpy import save

    from bliss_jax.storage.sealed import _digest

    entry = json.dumps({"description": text, "sha256": _digest(text, arrays)})
    return save(dict(arrays), metadata={kind: entry})


_DTYPES = ("<f4", "<i4", "<f2", "<f8", "|u1", "|b1", "<i8", "<u2")


def _reshaped(content: bytes, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays, of which some are replaced as `content` says.

    Each group of four bytes in the first 16 describes one replacement: position of the name, dtype, rows and
    columns. The other bytes are the values.
    """
    changed = dict(arrays)
    for which, dtype, rows, columns in zip(*[iter(content[:16])] * 4, strict=False):
        name = [*sorted(arrays), "another"][which % (len(arrays) + 1)]
        shape = (rows % 5, columns % 9)[: columns % 3]
        filling = content[16 : 16 + int(np.prod(shape, dtype=int))]
        values = np.resize(np.frombuffer(filling or b"\1", np.uint8), shape)
        changed[name] = values.astype(_DTYPES[dtype % len(_DTYPES)])
    return changed


def _sealed_target(
    kind: str, arrays: Mapping[str, np.ndarray], text: str, decode: Callable[[bytes], object]
) -> Target:
    """Returns the target for a kind of sealed file.

    The first byte of an input determines whether the other bytes are the content of the file, its
    description ("d") or the changes of its arrays ("a"). The SHA-256 of mutated content is nearly always
    wrong. In the two other cases it is recomputed, so that the checks behind it are reached.
    """

    def read(content: bytes) -> None:
        how, rest = content[:1], content[1:]
        if how == b"d":
            rest = _sealed(kind, rest.decode("utf-8", "replace"), arrays)
        elif how == b"a":
            rest = _sealed(kind, text, _reshaped(rest, arrays))
        decode(rest)

    whole = _sealed(kind, text, arrays)
    seeds = [b"w" + whole, b"d" + text.encode(), b"a" + bytes(24), b"a\1\2\3\4\0\1\2\3" + bytes(9)]
    words = [
        *_JSON,
        *(word.encode() for word in json.loads(text)),
        b"__metadata__",
        b"data_offsets",
    ]
    return Target(read, seeds, words)


_JSON = [b"[", b"]", b"{", b"}", b'"', b":", b",", b"null", b"true", b"-1", b"1e999", b"NaN"]
_JSON += [b"[" * 2000, b'{"a":' * 500, b"1" * 5000, b"\\u0000", b"\\ud800", b"\xed\xa0\x80"]


def _shard() -> Target:
    from bliss_jax.embedding.shards import Shard, Span, _description, decode_shard

    key, span = {"model": {"weights_sha256": "00"}, "classes": ["a", "b"]}, Span(10, 14)
    arrays = {
        "embeddings": np.eye(3, 8, dtype=np.float32),
        "rows": np.array([10, 11, 13], np.int32),
    }
    text = json.dumps(_description(("12.png: damaged",), span, key), sort_keys=True)

    def decode(content: bytes) -> Shard:
        return decode_shard(content, span, key)

    return _sealed_target("shard", arrays, text, decode)


def _detector_parts() -> tuple[str, dict[str, np.ndarray]]:
    unit = np.eye(3, 8, dtype=np.float32)
    arrays = {
        "count": np.array([4, 4], np.int32),
        "mean": unit[:2],
        "cov": np.zeros((2, 8, 8), np.float32),
        "label_embeddings": unit[:2],
        "dictionary_embeddings": unit,
        "calibration_embeddings": unit[1:],
        "calibration_labels": np.array([0, 1], np.int32),
    }
    description = {
        "format": 1,
        "class_names": ["cat", "dog"],
        "dictionary": ["a", "b", "c"],
        "k": 2,
        "weight": 0.5,
        "shrinkage": 0.0,
        "prompt": "This is a photo of a {label}",
        "preprocess": None,
        "provenance": {"model": {"name": "bliss-jax/untrained", "weights_sha256": "00"}},
    }
    return json.dumps(description, sort_keys=True), arrays


def detector_content() -> bytes:
    """Returns the content of a valid detector file."""
    from bliss_jax.detection.file_format import KIND

    return _sealed(KIND, *_detector_parts())


def _detector() -> Target:
    from bliss_jax.detection.file_format import KIND, decode_detector

    text, arrays = _detector_parts()
    return _sealed_target(KIND, arrays, text, lambda content: decode_detector(content, "a file"))


def _checkpoint() -> Target:
    from safetensors.numpy import save

    from bliss_jax.models.weights import read_tensors

    file = _file("model.safetensors")

    def read(content: bytes) -> None:
        file.write_bytes(content)
        read_tensors(file.parent)

    tensors: dict[str, Any] = {
        "logit_scale": np.ones(1, np.float32),
        "text_model.encoder.layers.0.mlp.fc1.weight": np.eye(2, 3, dtype=np.float32),
        "vision_model.embeddings.patch_embedding.weight": np.zeros((2, 3, 1, 1), np.float16),
        "vision_model.head.attention.in_proj_weight": np.zeros((6, 2), np.float32),
    }
    seeds = [save(tensors), save(tensors, metadata={"format": "pt"}), save({})]
    dtypes = [b"F32", b"BF16", b"F8_E4M3", b"F8_E5M2", b"F4", b"BOOL", b"I64", b"U8", b"C64"]
    words = [*_JSON, *dtypes, b"data_offsets", b"shape", b"dtype", b"__metadata__", b".weight"]
    return Target(read, seeds, words)


def _words() -> Target:
    from bliss_jax.text import load_dictionary

    file = _file("words.txt")

    def read(content: bytes) -> None:
        file.write_bytes(content)
        phrases = load_dictionary(file)
        # An accepted phrase is one line without surrounding whitespace and control characters.
        if not all(p == p.strip() and p and "\n" not in p and "\0" not in p for p in phrases):
            raise AssertionError(f"accepted {phrases!r}")

    seeds = [b"cat\ndog\n", b"\xef\xbb\xbfAfrican elephant\r\n\r\nz\xc3\xbcge\r\n", b" \t x\n\n"]
    words = [b"\n", b"\r", b"\xef\xbb\xbf", b"\0", b"\x1b[31m", b"\xc2\x85", b"\xe2\x80\xa8"]
    words += [
        b"\xe2\x80\x8f",
        b"\xff",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xc2\xa0",
    ]
    return Target(read, seeds, words)


def _protocol() -> Target:
    from bliss_jax.datasets.protocol_file import read_protocol

    file = _file("protocol.json")

    def read(content: bytes) -> None:
        file.write_bytes(content)
        name, splits = read_protocol(file, num_classes=10, reserved={"zoc-6"})
        if not name.strip() or not all(0 <= i < 10 for split in splits for i in split):
            raise AssertionError(f"accepted {name!r}, {splits!r}")

    seeds = [
        b'{"name": "vehicles against animals", "splits": [[0, 1, 8, 9], [2, 3, 4, 5, 6, 7]]}',
        b'{"splits": [[0]], "name": "\\u00e9"}',
        '{"name": "a", "splits": [[0]]}'.encode("utf-16"),
        '{"name": "a", "splits": [[0]]}'.encode("utf-32-be"),
    ]
    return Target(
        read, seeds, [*_JSON, b'"name"', b'"splits"', b"zoc-6", b"0.5", b"-0", b"\xfe\xff"]
    )


def _command() -> Target:
    from fuzz.commands import read, seeds, words

    # The time of the first command includes imports.
    return Target(read, seeds(), words(), slow=60.0)


_MAKERS: dict[str, Callable[[], Target]] = {
    "shard": _shard,
    "detector": _detector,
    "checkpoint": _checkpoint,
    "words": _words,
    "protocol": _protocol,
    "command": _command,
}
NAMES = tuple(_MAKERS)


@cache
def target(name: str) -> Target:
    """Returns the target with a name of `NAMES`."""
    return _MAKERS[name]()
