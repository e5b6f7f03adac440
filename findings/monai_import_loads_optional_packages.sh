#!/bin/bash
# MONAI imported for a scheduler of a few lines, in an environment that also has pandas, matplotlib and scikit-learn.
#
# MONAI 1.6.1 imports all of its modules when any one is imported, and they import whatever optional package they find:
# what is installed for notebooks and plots is loaded by every worker process that draws with a network. Without
# these three (blocked from being found, as if they were not installed) MONAI is imported in less than two thirds of the
# time.
# Exits 0 while this is so, 1 when it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "monai==1.6.1" "torch==2.14.1" "numpy<3" "pandas==3.1.1" "matplotlib==3.11.2" \
    "scikit-learn==1.9.1"
cd "$work"
cat >load.py <<'PY'
import sys
import time
import warnings

import numpy
import torch

warnings.simplefilter("ignore")
OPTIONAL = {"pandas", "matplotlib", "sklearn"}


class Blocked:
    """Finds none of the optional packages."""

    def find_spec(self, name, path=None, target=None):
        if name in OPTIONAL:
            raise ModuleNotFoundError(name)


if sys.argv[1] == "blocked":
    sys.meta_path.insert(0, Blocked())
begun = time.process_time()
from monai.networks.schedulers import RFlowScheduler

print(f"{time.process_time() - begun:.2f}", ",".join(sorted(OPTIONAL & set(sys.modules))) or "none")
PY
"$work/venv/bin/python" load.py all >/dev/null  # compiled once
read -r seconds loaded < <("$work/venv/bin/python" load.py all)
read -r without none < <("$work/venv/bin/python" load.py blocked)
echo "MONAI 1.6.1: a scheduler is imported in $seconds s of the processor, and with it $loaded"
echo "the same with these blocked: $without s, and with it $none"
if [[ $loaded == matplotlib,pandas,sklearn && $none == none ]] && awk "BEGIN {exit !($seconds > 1.4 * $without)}"; then
    echo "as described"
else
    echo "CHANGED"
    exit 1
fi
