#!/bin/bash
# Ray on one machine and account, with a token in ~/.ray/auth_token: ray start, then ray.init("HOST:PORT").
#
# Ray 2.60.0's `ray start --head` finds the token and asks everyone for it. ray.init(address="HOST:PORT") of the same
# account does not look for the file: it sends no token, is refused, tries again for some time, and
# ends with "Failed to connect to Ray cluster", which names no token. With RAY_AUTH_MODE=token it reads the file and is
# let in. Exits 0 while this is so, 1 when it changes.
set -euo pipefail
work=$(mktemp -d)
head=""
trap '[[ -z "$head" ]] || kill -KILL -- "-$head" 2>/dev/null || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "ray==2.60.0"
cd "$work"
export HOME="$work" PATH="$work/venv/bin:$PATH" RAY_USAGE_STATS_ENABLED=0
unset RAY_AUTH_MODE RAY_ADDRESS
cat >join.py <<'PY'
import sys

import ray

try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
    print("joined a cluster with", int(ray.cluster_resources()["CPU"]), "core")
except Exception as error:
    print(type(error).__name__, " ".join(str(error).split())[:160])
PY
ray get-auth-token --generate >/dev/null 2>&1
port=$(python -c "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])")
setsid ray start --head --block --port="$port" --node-ip-address=127.0.0.1 --num-cpus=1 --include-dashboard=false \
    --temp-dir="$work/r" --object-store-memory=100000000 >head.log 2>&1 &
head=$!
for _ in $(seq 240); do grep -q "Ray runtime started" head.log && break; sleep 1; done
said=$(timeout 300 python join.py "127.0.0.1:$port" 2>&1 || true)
without=$(tail -1 <<<"$said")
with=$(RAY_AUTH_MODE=token timeout 300 python join.py "127.0.0.1:$port" 2>/dev/null | tail -1 || true)
echo "Ray 2.60.0, as it is: $without"
echo "with RAY_AUTH_MODE=token: $with"
if [[ $said == *"Authentication token is missing"* && $without == ConnectionError* && $without != *oken* &&
    $with == "joined a cluster with 1 core" ]]; then
    echo "as described"
else
    echo "CHANGED"
    exit 1
fi
