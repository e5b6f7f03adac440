#!/bin/bash
# huggingface_hub's create_repo(exist_ok=True) on a hub of one's own, with a token that may write but not create.
#
# Such a token is refused with 403, although the repository is there. huggingface_hub 2.4.0 then asks for the repository,
# finds it, and raises "Invalid HF URI" in place of returning its address: it reads the address that it has just built
# without the endpoint of the HfApi. Where the hub answers 409 for a repository that exists, the address comes back.
# Exits 0 while this is so, 1 when it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "huggingface_hub==2.4.0"
cd "$work"
cat >create.py <<'PY'
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from huggingface_hub import HfApi


class Hub(BaseHTTPRequestHandler):
    """Holds the repository anna/kidney; what creates one is answered with the server's status."""

    def reply(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        url = f"http://127.0.0.1:{self.server.server_port}/anna/kidney"
        self.reply(self.server.status, {"url": url, "error": "refused"})

    def do_GET(self):
        self.reply(200, {"id": "anna/kidney", "sha": "0" * 40, "siblings": []})

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
found = {}
for status in (409, 403):
    server.status = status
    api = HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token="none")
    try:
        found[status] = api.create_repo("anna/kidney", exist_ok=True).repo_id
    except Exception as error:
        found[status] = f"{type(error).__name__}: {error}".replace(str(server.server_port), "PORT")
    print(f"answer {status}: {found[status]}")
is_so = found[409] == "anna/kidney" and "Invalid HF URI" in found[403]
print("as described" if is_so else "CHANGED")
sys.exit(0 if is_so else 1)
PY
echo "huggingface_hub 2.4.0"
HF_HUB_DISABLE_TELEMETRY=1 NO_PROXY=127.0.0.1 "$work/venv/bin/python" create.py
