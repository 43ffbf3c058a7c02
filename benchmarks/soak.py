"""Long run of `bliss-jax score -` on a stream of file names with faults: memory and correct lines.

    python -m benchmarks.soak --seconds 3600

The benchmark writes names of images to the command's standard input at a steady rate. Every sixth name is a
fault: a truncated file, an empty file, a text file, an animation, a decompression bomb, a broken link, a
missing file, or a file that is deleted and restored. The command must print the names in the same order, each
with a score or with a reason, whichever is right. The command's resident memory is read from /proc, and a
straight line is fitted to the values after the first tenth of the time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

IMAGES, EVERY = 200, 6


def main() -> None:
    """Runs the benchmark and prints the results as JSON. The exit code is 1 if a line is wrong or lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3600, help="duration; 3600 by default")
    parser.add_argument("--rate", type=float, default=50, help="names per second; 50 by default")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(Path(folder), options.seconds, options.rate)
    text = json.dumps(found, indent=1)
    if options.json:
        options.json.write_text(text + "\n")
    print(text)
    if found["lost"] or found["wrong"]:
        sys.exit(1)


def soak(folder: Path, seconds: float, rate: float) -> dict:
    """Sends names to the command for a number of seconds, and returns counts and memory."""
    detector, names = prepare(folder)
    command = [
        sys.executable,
        "-m",
        "bliss_jax.cli",
        "score",
        str(detector),
        "-",
        "--json",
        "--quiet",
    ]
    child = subprocess.Popen(  # noqa: S603
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
    )
    assert child.stdin and child.stdout
    sent: list[int] = []
    wrong: list[str] = []
    outcomes: Counter[str] = Counter()
    memory: list[tuple[float, float]] = []
    start = time.monotonic()
    received = 0

    def read() -> None:
        nonlocal received
        assert child.stdout
        for line in child.stdout:
            row = json.loads(line)
            name, expected = names[sent[received]]
            received += 1
            scored = row["score"] is not None
            outcomes[expected + (": scored" if scored else ": refused")] += 1
            right = expected == "comes and goes" or scored == (expected == "image")
            if row["path"] != name or not right:
                wrong.append(f"line {received}: {row}, expected {name} ({expected})")

    reader = threading.Thread(target=read)
    reader.start()
    flicker = folder / "flicker.png"
    content = flicker.read_bytes()
    order = np.random.default_rng(0)
    faults = [i for i, (_, kind) in enumerate(names) if kind != "image"]
    noted = 0.0
    while (now := time.monotonic() - start) < seconds and child.poll() is None:
        due = int(now * rate) - len(sent)
        for _ in range(min(due, 200)):
            fault = len(sent) % EVERY == 0
            index = int(order.choice(faults) if fault else order.integers(IMAGES))
            if names[index][1] == "comes and goes":
                flicker.unlink() if flicker.exists() else flicker.write_bytes(content)
            sent.append(index)
            child.stdin.write(names[index][0].encode() + b"\n")
        child.stdin.flush()
        if now - noted >= 10:
            noted = now
            memory.append((now, resident(child.pid)))
        time.sleep(0.05)
    child.stdin.close()
    code = child.wait(300)
    reader.join(300)
    kept = np.array([m for m in memory if m[0] > seconds / 10])
    slope, at_start = np.polyfit(kept[:, 0], kept[:, 1], 1) if len(kept) > 2 else (np.nan, np.nan)
    return {
        "seconds": round(time.monotonic() - start),
        "names": len(sent),
        "lines": received,
        "lost": len(sent) - received,
        "wrong": wrong[:20],
        "exit_code": code,
        "outcomes": dict(sorted(outcomes.items())),
        "resident_mb_first": round(float(kept[0, 1]), 1) if len(kept) else None,
        "resident_mb_last": round(float(kept[-1, 1]), 1) if len(kept) else None,
        "resident_mb_most": round(max(m for _, m in memory), 1) if memory else None,
        "slope_mb_per_hour": round(float(slope) * 3600, 2),
        "resident_mb_fitted_at_start": round(float(at_start), 1),
    }


def resident(pid: int) -> float:
    """Returns the resident memory of a process in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next((line for line in status.splitlines() if line.startswith("VmRSS")), "VmRSS: 0 kB")
    return int(line.split()[1]) / 1024


def prepare(folder: Path) -> tuple[Path, list[tuple[str, str]]]:
    """Returns a detector of chess symbols, and the names and kinds of files: images first, then faults."""
    from PIL import Image

    import bliss_jax as bj

    train = bj.load_dataset("glyphs", "train")
    chess = [c for c, name in enumerate(train.class_names) if "chess" in name]
    normal = train.subset(np.flatnonzero(np.isin(train.labels, chess)))
    normal = replace(
        normal,
        labels=np.searchsorted(chess, normal.labels),
        class_names=tuple(train.class_names[c] for c in chess),
    )
    detector = bj.Detector.fit(
        bj.load_model("bliss-jax/tiny"),
        normal,
        dictionary="unicode-names",
        k=1,
    )
    detector.save(folder / "det.safetensors")
    rng = np.random.default_rng(1)
    for i, row in enumerate(rng.choice(len(train), IMAGES, replace=False)):
        image = Image.fromarray(train.images[int(row)])
        image.resize([(32, 32), (200, 120), (641, 480)][i % 3]).save(folder / f"{i}.jpg")
    names = [(f"{i}.jpg", "image") for i in range(IMAGES)]
    names += [(name, kind) for name, kind in _faults(folder)]
    return folder / "det.safetensors", names


def _faults(folder: Path) -> Iterator[tuple[str, str]]:
    from PIL import Image

    whole = (folder / "2.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    yield "truncated.jpg", "truncated"
    (folder / "empty.png").write_bytes(b"")
    yield "empty.png", "empty"
    (folder / "text.jpg").write_text("no image")
    yield "text.jpg", "no image"
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    yield "animated.gif", "animated"
    (folder / "bomb.png").write_bytes(_bomb(30_000))
    yield "bomb.png", "bomb"
    (folder / "link.png").symlink_to(folder / "nowhere.png")
    yield "link.png", "broken link"
    yield "absent.png", "absent"
    frames[0].save(folder / "flicker.png")
    yield "flicker.png", "comes and goes"


def _bomb(side: int) -> bytes:
    """Returns a PNG of a few kilobytes whose header states side x side pixels of RGB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + crc

    size = side.to_bytes(4, "big")
    header = chunk(b"IHDR", size + size + bytes([8, 2, 0, 0, 0]))
    pixels = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


if __name__ == "__main__":
    main()
