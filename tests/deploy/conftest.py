"""What the installed Prefect says of the files in deploy/, for all tests of this folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.prefect.settings import CLIENT

DEPLOY = Path(__file__).parents[2] / "deploy"
CHOSEN = {"gpus": 4, "image": "other:1.2", "node_selector": {"nvidia.com/gpu.product": "H100"}}


@pytest.fixture(scope="session")
def prefect_says(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Which variables of these files it does not know, and what it makes of the job template."""
    files = [
        path.read_text()
        for path in DEPLOY.rglob("*")
        # .env is a person's; pictures, and what Python compiled of a script here, are no text.
        if path.is_file() and path.name != ".env" and path.suffix not in {".png", ".pyc"}
    ]
    names = {name for text in files for name in re.findall(r"\bPREFECT_[A-Z0-9_]+\b", text)}
    asked = {
        "names": sorted(names),
        "template": json.loads((DEPLOY / "kubernetes" / "gpu-job-template.json").read_text()),
        "values": [{"image": "mixpool:0.1.0-cuda", "env": CLIENT}, {"env": CLIENT, **CHOSEN}],
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("prefect_says.py")],
        input=json.dumps(asked),
        env={**kept, "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect"))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(names) > 25
    found: dict[str, Any] = json.loads(done.stdout)
    return found
