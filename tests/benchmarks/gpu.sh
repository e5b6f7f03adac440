#!/usr/bin/env bash
# Everything that wants a GPU, in one go and at most twelve minutes: bash tests/benchmarks/gpu.sh [FOLDER]
#
# NVIDIA's networks at full width with random weights: each stage's seconds and peak memory against the published way,
# exact decoding against windows, float16 against float32, and the tests that need a GPU. A part that fails or takes too
# long leaves its error in FOLDER and the rest alone. NVIDIA publishes for an A100 of 80 GB (NV-Generate-CTMR,
# docs/inference.md, sampling and decoding): 5 + 3 s and 15.4 GB for 256^3, 8 + 5 s and 15.7 GB for 512x512x128,
# 29 + 19 s and 22.8 GB for 512^3.
#
# DEVICE=cpu bash tests/benchmarks/gpu.sh FOLDER runs the same at a tiny size, to see that it works.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
out="$(mkdir -p "${1:-results-gpu}" && cd "${1:-results-gpu}" && pwd)"
device="${DEVICE:-cuda}"
if [ "$device" = cpu ]; then
  width=tiny half=float32 sides="32" grids="32x32x32" window=4x4x4 memory=1 options="--steps 2 --repeats 1"
else
  width=full half=float16 sides="256 512" grids="256x256x256 512x512x128" window=48x48x64 memory=20
  options="--repeats 1"
fi

# part NAME SECONDS COMMAND...: its output in NAME.log, one line of its outcome here.
part() {
  local name="$1" limit="$2" begun=$SECONDS
  shift 2
  if timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1; then outcome=done; else outcome="failed ($?)"; fi
  printf '%-24s %-14s %4d s\n' "$name" "$outcome" $((SECONDS - begun)) | tee -a "$out/summary.txt"
}

: >"$out/summary.txt"
part machine 30 sh -c 'nvidia-smi || true; python -m torch.utils.collect_env || python -m pip list'
for side in $sides; do
  part "decode-$side" 100 python -m tests.benchmarks.decoding --device "$device" --width "$width" --side "$side" \
    --precision "$half" --window "$window" --own-window 64x64x48 --memory "$memory" --out "$out/decode-$side.json" \
    --way exact --way windows --way reference
done
part decode-float32 60 python -m tests.benchmarks.decoding --device "$device" --width "$width" \
  --side "${sides%% *}" --out "$out/decode-float32.json" --way whole --way exact
for grid in $grids; do
  # shellcheck disable=SC2086
  part "stages-$grid" 120 python -m tests.benchmarks.pipeline --device "$device" --width "$width" --grid "$grid" \
    $options --out "$out/stages-$grid"
done
part precision 60 python -m tests.benchmarks.precision
part tests 120 python -m pytest -q -m gpu tests
cat "$out"/decode-*.log "$out"/stages-*/*.md 2>/dev/null | tee "$out/tables.md"
echo "Figures are in $out"
