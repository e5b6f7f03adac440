"""How fast fresh cases come while training: python -m tests.benchmarks.fresh_cases --reuse 4 --items 24."""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

from monai.data import DataLoader

from maisi_aug.integrations.fresh_cases import FreshCases


def measure(
    configuration: dict[str, Any], *, num_items: int, reuse: int, num_workers: int, device: str
) -> dict[str, Any]:
    """Seconds until the first item, and per item of the first and the second epoch."""
    began = time.perf_counter()
    with FreshCases(configuration, num_items=num_items, reuse=reuse, device=device) as cases:
        cases[0]
        first = time.perf_counter() - began
        seconds = []
        for epoch in (0, 1):
            cases.set_epoch(epoch)
            began = time.perf_counter()
            for _ in DataLoader(cases, batch_size=1, num_workers=num_workers):
                pass
            seconds.append((time.perf_counter() - began) / num_items)
        began = time.perf_counter()
        held = cases.schedule.num_items - 1
        cases.fetch(1, held)  # the last case of an epoch is made again once, and then handed out
        made = time.perf_counter() - began
    return {
        "num_workers": num_workers,
        "first_item_s": round(first, 2),
        "item_s": [round(value, 3) for value in seconds],
        "made_again_s": round(made, 3),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Measure with 0 and 2 workers and print JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--reuse", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    configuration = {"labels": ["hepatic tumor:20-40mm", "lung tumor:10-30mm"]}
    for num_workers in (0, 2):
        result = measure(
            configuration, num_items=options.items, reuse=options.reuse, num_workers=num_workers, device=options.device
        )
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
