"""The file of results: one line of JSON for every number or group of numbers, as soon as it is measured."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MEASURED, FAILED, STOPPED, LEFT_OUT = "measured", "failed", "stopped", "left out"
"""Statuses of a case."""


class Results:
    """Numbers by case, kept in `results.jsonl` in the output folder; each line adds to a case.

    Raises:
        ValueError: If the file holds numbers of shrunken models and others are measured, or vice versa.
    """

    def __init__(self, folder: Path, quick: bool) -> None:
        self.file = folder / "results.jsonl"
        self.records = read_results(self.file) if self.file.exists() else {}
        self._quick = quick
        if self.records and self.records.get("machine", {}).get("quick") != quick:
            raise ValueError(f"{self.file}: expected an empty folder, because --quick has changed")

    def add(self, name: str, numbers: Mapping[str, Any]) -> None:
        """Adds numbers to a case and writes them."""
        self.records.setdefault(name, {}).update(numbers)
        with self.file.open("a") as file:
            file.write(json.dumps({"case": name, **numbers}) + "\n")

    def start(self, name: str) -> None:
        """Marks that a case starts. Numbers of an earlier run of the case no longer count."""
        self.records.pop(name, None)
        reason = "the benchmark was ended while the case ran"
        self.add(name, {"started": True, "status": STOPPED, "reason": reason})

    def check_machine(self, facts: Mapping[str, Any]) -> None:
        """Records the machine.

        Raises:
            ValueError: If the file holds numbers of another machine or of other versions.
        """
        facts = {**facts, "quick": self._quick}
        known = self.records.get("machine")
        if known is not None and known != facts:
            raise ValueError(
                f"{self.file}: expected numbers of this machine, {facts}, found those of {known}; "
                "use another output folder"
            )
        if known is None:
            self.add("machine", facts)


def read_results(file: Path) -> dict[str, dict[str, Any]]:
    """Reads the numbers of every case from `results.jsonl`. A last line that was cut off is ignored."""
    records: dict[str, dict[str, Any]] = {}
    for line in file.read_text().splitlines():
        try:
            numbers = json.loads(line)
        except json.JSONDecodeError:
            continue
        name = numbers.pop("case")
        if "started" in numbers:
            records.pop(name, None)
        records.setdefault(name, {}).update(numbers)
    return records
