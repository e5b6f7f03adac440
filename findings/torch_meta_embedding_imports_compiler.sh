#!/bin/bash
# PyTorch: a network with an embedding, built on the meta device to list its tensors, imports the compiler.
#
# The meta device is there to learn names and shapes without memory and time. Drawing an embedding's weights there makes
# torch 2.14.1 import torch._dynamo, and sympy with it: about as long as `import torch` itself takes, in every process.
# Convolutions and linear layers are not affected, because uniform_ has a kernel of its own on the meta device and
# normal_ has none. Exits 0 while this is so, 1 when it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "numpy<3"
cd "$work"
cat >meta.py <<'PY'
import sys
import time

begun = time.process_time()
import torch
from torch import nn

of_torch, found = time.process_time() - begun, {}
for device in ("cpu", "meta"):
    for kind, sizes in ((nn.Linear, (4, 8)), (nn.Conv3d, (1, 8, 3)), (nn.Embedding, (4, 8))):
        begun = time.process_time()
        with torch.device(device):
            kind(*sizes)
        seconds = time.process_time() - begun
        found[device, kind.__name__] = seconds, "torch._dynamo" in sys.modules
        print(f"{kind.__name__} on {device}: {seconds:.2f} s, compiler imported: {'torch._dynamo' in sys.modules}")
print(f"import torch: {of_torch:.2f} s")
loads = {key for key, (_, has_compiler) in found.items() if has_compiler}
is_so = loads == {("meta", "Embedding")} and found["meta", "Embedding"][0] > 0.25 * of_torch
print("as described" if is_so else "CHANGED")
sys.exit(0 if is_so else 1)
PY
echo "torch 2.14.1"
"$work/venv/bin/python" meta.py
