#!/usr/bin/env bash
# Everything that wants a GPU, in one go and at most twelve minutes: bash tests/benchmarks/gpu.sh [FOLDER]
#
# NVIDIA's networks at full width with random weights: each stage's seconds and peak memory against the published way,
# exact decoding against windows, half precision against float32 in HU, compiled networks, several cases at once, and the
# tests that need a GPU. The parts come in the order of their weight. One that fails or takes too long leaves its log and
# the rest alone; what no time is left for is left out. FOLDER/results.md has the tables, FOLDER/results.json the figures.
#
# MINUTES=20 allows more time, PYTHON=python3.12 names the interpreter. DEVICE=cpu runs the same at a tiny size, to see
# that it works; compiling takes most of the time there.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
out="$(mkdir -p "${1:-results-gpu}" && cd "${1:-results-gpu}" && pwd)" || exit 1
device="${DEVICE:-cuda}" python="${PYTHON:-python}"
weights="$(mktemp -d)"
trap 'rm -rf "$weights"' EXIT
if [ "$device" = cpu ]; then
  minutes="${MINUTES:-60}" patience=10 width=tiny half=float32 steps=2 phantoms=1
  grids="64x64x64" sides="64" window=12x12x12 own_window=16x16x16 memory=1
else
  minutes="${MINUTES:-12}" patience=1 width=full half=float16 steps=30 phantoms=4
  grids="256x256x256 512x512x128 512x512x512" sides="256 512" window=64x64x48 own_window=64x64x48 memory=20
fi
deadline=$((SECONDS + 60 * minutes))
: >"$out/summary.txt"

# part NAME SECONDS COMMAND...: its output in NAME.log, one line of its outcome here and in summary.txt.
part() {
  local name="$1" limit=$((patience * $2)) begun=$SECONDS outcome=done status
  local left=$((deadline - SECONDS - 10))
  shift 2
  rm -f "$out/$name.log" "$out/$name.json" "$out/$name/results_pipeline".* # of an earlier run
  if [ "$left" -lt 15 ]; then
    outcome="left out"
  else
    timeout --kill-after=5 "$((limit < left ? limit : left))" "$@" >"$out/$name.log" 2>&1 </dev/null
    status=$?
    case $status in 0) ;; 124 | 137) outcome="out of time" ;; *) outcome="failed ($status)" ;; esac
  fi
  printf '%-22s %-14s %4d s\n' "$name" "$outcome" $((SECONDS - begun)) | tee -a "$out/summary.txt"
  case $outcome in failed*) tail -n 3 "$out/$name.log" | sed 's/^/    /' ;; esac
}

stages() { # NAME SECONDS GRID OPTION...
  local name="$1" limit="$2" grid="$3"
  shift 3
  part "$name" "$limit" "$python" -m tests.benchmarks.pipeline --device "$device" --width "$width" --grid "$grid" \
    --steps "$steps" --repeats 1 --precision "$half" --own-precision "$half" --weights "$weights" --out "$out/$name" "$@"
}

decode() { # NAME SECONDS SIDE OPTION...
  local name="$1" limit="$2" side="$3"
  shift 3
  part "$name" "$limit" "$python" -m tests.benchmarks.decoding --device "$device" --width "$width" --side "$side" \
    --window "$window" --own-window "$own_window" --weights "$weights" --out "$out/$name.json" "$@"
}

first_grid="${grids%% *}" first_side="${sides%% *}" last_side="${sides##* }"
part machine 30 sh -c "nvidia-smi; $python -m torch.utils.collect_env || $python -m pip list"
stages "stages-$first_grid" 110 "$first_grid" --warm-ups 1
decode "decode-$first_side" 110 "$first_side" --precision "$half" --way whole --way exact --way reference --way windows
if [ "$device" = cpu ]; then
  echo "tests                  left out, they need a GPU" | tee -a "$out/summary.txt"
else
  mapfile -t gpu_tests < <(grep -rl --include='test_*.py' 'pytest\.mark\.gpu' tests)
  part tests 90 "$python" -m pytest -q -p no:cacheprovider -m gpu "${gpu_tests[@]}"
fi
for grid in $grids; do
  [ "$grid" = "$first_grid" ] || stages "stages-$grid" 120 "$grid"
done
[ "$last_side" = "$first_side" ] ||
  decode "decode-$last_side" 120 "$last_side" --precision "$half" --memory "$memory" --way exact --way windows --way reference
part precision 90 "$python" -m tests.benchmarks.precision --device "$device" --num "$phantoms" --steps "$steps"
part batches 60 "$python" -m tests.benchmarks.batches --device "$device" --width "$width" --grid "$first_grid" \
  --precision "$half" --steps "$((steps < 4 ? steps : 4))" --weights "$weights" --out "$out/batches.json"
stages compiled 150 "$first_grid" --warm-ups 1 --only ours --compile inductor
decode decode-float32 60 "$first_side" --way whole --way exact

"$python" -m tests.benchmarks.gpu_report "$out" && echo "Figures are in $out/results.md and results.json"
