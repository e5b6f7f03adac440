#!/usr/bin/env bash
# The default tests under the lowest versions that pyproject.toml allows; for a change of those, not for every change.
# Needs uv, a network, and 6 GB on the disk:  tests/lowest_versions.sh [FOLDER of the environment] [tests ...]
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$(mktemp -d)}
tests=("${@:2}")
[ ${#tests[@]} -gt 0 ] || tests=(tests/*/ tests/test_*.py)
cd "$repository"
mkdir -p "$folder"
uv pip compile -q --python-version 3.11 --resolution lowest-direct --extra test --extra dicom --extra torchio \
  --extra tensorboard pyproject.toml -o "$folder/lowest.txt"
[ -x "$folder/venv/bin/python" ] || uv venv -q --python 3.11 "$folder/venv"
uv pip sync -q --python "$folder/venv/bin/python" "$folder/lowest.txt"
uv pip install -q --no-deps --python "$folder/venv/bin/python" -e .
export PATH="$folder/venv/bin:$PATH" PYTHONPATH="$repository"
# One process for each room: one that dies takes no other's results with it.
failed=()
for group in "${tests[@]}"; do
  echo "== $group"
  code=0
  python -m pytest -q "$group" || code=$?
  [ "$code" -eq 0 ] || [ "$code" -eq 5 ] || failed+=("$group") # 5: no test that is run by default
done
echo "Failed: ${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]
