"""How fast fresh cases come while training: python -m tests.benchmarks.fresh_cases --cases 4."""

from __future__ import annotations

import argparse
import json
import os
import time
from statistics import median
from typing import Any

from maisi_aug.cohort.request import build_request
from maisi_aug.integrations.fresh.cases import FreshCases
from maisi_aug.integrations.fresh.maker import FreshMaker

CONFIGURATION = {"labels": ["hepatic tumor:20-40mm"]}


def measure_making(num_cases: int, device: str) -> dict[str, Any]:
    """Seconds, and seconds of the processor, that a case takes in one process."""
    values = build_request(CONFIGURATION).to_dict()
    maker = FreshMaker.open(values, device=device, num_cases=num_cases, seed=0)
    maker.make(0, 0)
    seconds, processor_seconds = [], []
    for number in range(num_cases):
        began, began_processor = time.perf_counter(), time.process_time()
        maker.make(1, number)
        seconds.append(time.perf_counter() - began)
        processor_seconds.append(time.process_time() - began_processor)
    return {"case_s": round(median(seconds), 3), "case_processor_s": round(median(processor_seconds), 3)}


def measure_handing_over(device: str, num_takes: int = 20) -> dict[str, Any]:
    """Seconds from asking for a case that is held to having it, and until the first one is there."""
    began = time.perf_counter()
    with FreshCases(CONFIGURATION, num_items=num_takes + 2, reuse=num_takes + 2, device=device) as cases:
        cases.fetch(0, 0)
        first = time.perf_counter() - began
        seconds = []
        for item in range(1, num_takes + 1):
            began = time.perf_counter()
            cases.fetch(0, item)
            seconds.append(time.perf_counter() - began)
    return {"first_item_s": round(first, 2), "hand_over_s": round(median(seconds), 4)}


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    figures = {**measure_making(options.cases, options.device), **measure_handing_over(options.device)}
    print(json.dumps({**figures, "load_average_before": round(load, 1), "cpu_count": os.cpu_count()}))


if __name__ == "__main__":
    main()
