#!/bin/bash
# MONAI's MMDMetric: maximum mean discrepancy of real and synthetic cases.
#
# A maximum mean discrepancy with a Gaussian kernel is 0 only where two distributions are equal, and MONAI documents its
# metric as kernel-based and never negative (Gretton et al., JMLR 2012). MMDMetric of MONAI 1.6.1 has a linear kernel
# only: it estimates the squared distance between the two mean images, or between the means of what `y_mapping` returns.
# The Gaussian filter that is documented for `y_mapping` blurs each image, which is no Gaussian kernel and changes
# nothing. Cases that spread three times as wide pass as equal, and a generator that has collapsed to one mean image
# scores better than held-out real cases, below 0. So it does not show whether a synthetic cohort is varied: use a
# kernel MMD, or KID of features. Exits 0 while this is so, 1 when it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "monai==1.6.1" "torch==2.14.1" "numpy<3" "scipy==1.17.1"
cd "$work"
cat >mmd.py <<'PY'
import statistics
import sys
import warnings

import torch

warnings.simplefilter("ignore")
import monai
from monai.metrics import MMDMetric
from monai.networks.layers import GaussianFilter

NUM, DRAWS, SHAPE = 200, 20, (1, 6, 6, 6)  # cases of a cohort, repetitions, one image


def draw_cases(generator, *, spread=1.0, shift=0.0):
    return shift + spread * torch.randn((NUM, *SHAPE), generator=generator)


def find_gaussian_mmd(first, second):
    """Unbiased squared MMD with a Gaussian kernel as wide as the median distance (Gretton et al. 2012, eq. 3)."""
    cases = torch.cat([first, second]).flatten(1)
    squared = torch.cdist(cases, cases).square()
    kernel = torch.exp(-squared / squared[squared > 0].median())
    kernel.fill_diagonal_(0)
    within = (kernel[:NUM, :NUM].sum() + kernel[NUM:, NUM:].sum()) / (NUM * (NUM - 1))
    return float(within - 2 * kernel[:NUM, NUM:].mean())


SYNTHETIC = {
    "equally distributed": draw_cases,
    "mean 0.1 higher": lambda generator: draw_cases(generator, shift=0.1),
    "three times the spread": lambda generator: draw_cases(generator, spread=3.0),
    "collapsed to the real mean": None,
}
blur = GaussianFilter(3, 1.0)
METRICS = {
    "MMDMetric": lambda real, made: float(MMDMetric()(real, made)),
    "MMDMetric, blurred": lambda real, made: float(MMDMetric(y_mapping=blur)(real, made)),
    "Gaussian kernel": find_gaussian_mmd,
}
print("monai", monai.__version__, "| torch", torch.__version__, f"| mean and standard deviation of {DRAWS} draws")
generator, found = torch.Generator().manual_seed(0), {}
for name, make in SYNTHETIC.items():
    values = {metric: [] for metric in METRICS}
    for _ in range(DRAWS):
        real = draw_cases(generator)
        made = real.mean(dim=0, keepdim=True).repeat(NUM, 1, 1, 1, 1) if make is None else make(generator)
        for metric, measure in METRICS.items():
            values[metric].append(measure(real, made))
    for metric, drawn in values.items():
        found[name, metric] = statistics.mean(drawn), statistics.stdev(drawn), min(drawn), max(drawn)
        print(f"{name:26} {metric:18} {found[name, metric][0]:+.3f} ({found[name, metric][1]:.3f})")
is_so = True
for metric in ("MMDMetric", "MMDMetric, blurred"):
    level = found["mean 0.1 higher", metric][0]
    is_so &= found["equally distributed", metric][2] < 0  # below 0, though documented as never negative
    is_so &= abs(found["three times the spread", metric][0]) < level / 3
    is_so &= found["collapsed to the real mean", metric][3] < 0
same = found["equally distributed", "Gaussian kernel"]
is_so &= all(found[name, "Gaussian kernel"][2] > same[3] for name in SYNTHETIC if name != "equally distributed")
print("as described" if is_so else "CHANGED")
sys.exit(0 if is_so else 1)
PY
"$work/venv/bin/python" mmd.py 2>/dev/null
