"""Runs `run_hub.py` against servers on loopback, away from all real credentials and caches."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from hub_servers import TOKEN

SCRIPT = Path(__file__).with_name("run_hub.py")


def run(home, cases, *, hugging_face=None, kaggle=None):
    """What each case came to, by its name: `result`, `out`, `warned` and `error`.

    Args:
        home: a folder for caches.
        cases: `{name: (call, arguments)}`.
        hugging_face: the address of a server, or None for one that nobody listens at.
        kaggle: likewise.
    """
    nobody = "http://127.0.0.1:9"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "KAGGLE", "HUGGING"))}
    env |= {
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": hugging_face or nobody,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",  # whose client speaks to servers of its own
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "KAGGLEHUB_CACHE": str(home / "kaggle"),
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "KAGGLE_ON_LOOPBACK": kaggle or nobody,
        "KAGGLE_API_TOKEN": TOKEN,
    }
    listed = [[name, call, arguments] for name, (call, arguments) in cases.items()]
    done = subprocess.run(
        [sys.executable, SCRIPT, json.dumps(listed)],
        env=env,
        capture_output=True,
        text=True,
        timeout=500,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"name"')]
    found = {line["name"]: SimpleNamespace(**line) for line in map(json.loads, lines)}
    assert found.keys() == cases.keys(), done.stderr[-3000:]
    return found


def contents(folder):
    """Bytes by name of all files in a folder."""
    files = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
