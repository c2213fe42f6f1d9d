"""Write requirements.lock and requirements-cuda.lock: every package of the image, with its hashes.

``python deploy/lock.py``, with Python 3.11 on Linux x86_64, after ``constraints.txt`` has changed. It is
a dry run of pip, which takes the sha256 of wheels from its index. ``requirements.lock`` is for x86_64
and aarch64; ``requirements-cuda.lock``, torch with its CUDA packages, for x86_64.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

DEPLOY = Path(__file__).parent
CUDA = re.compile("(torch|triton|cuda-.*|nvidia-(?!ml-py).*)==")
GLIBC = 36
"""Minor version of the C library of the image's base, Debian bookworm."""


def wheels(arch: str, requirements: list[str], *words: str) -> dict[str, str]:
    """The sha256 of each wheel that pip would install, by ``name==version``."""
    platforms = [f"manylinux_2_{minor}_{arch}" for minor in range(5, GLIBC + 1)]
    platforms += [f"manylinux{kind}_{arch}" for kind in ("1", "2010", "2014")]
    with tempfile.TemporaryDirectory() as folder:
        report, target = Path(folder) / "report.json", f"--target={folder}/none"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", target]
        command += ["--ignore-installed", "--only-binary=:all:", "--python-version=3.11"]
        command += [f"--platform={platform}" for platform in platforms]
        subprocess.run([*command, f"--report={report}", *words, *requirements], check=True)
        found = json.loads(report.read_text())["install"]
    return {
        f"{re.sub('[-_.]+', '-', item['metadata']['name']).lower()}=={item['metadata']['version']}": (
            item["download_info"]["archive_info"]["hashes"]["sha256"]
        )
        for item in found
    }


def write(name: str, pins: list[str], *found: dict[str, str]) -> None:
    """A file for ``pip install --require-hashes``."""
    lines = ["# Written by deploy/lock.py; every wheel is checked against one of its hashes."]
    for pin in sorted(pins):
        hashes = sorted({of_arch[pin] for of_arch in found})
        lines.append(" \\\n    ".join([pin, *(f"--hash=sha256:{digest}" for digest in hashes)]))
    (DEPLOY / name).write_text("\n".join(lines) + "\n")


def main() -> None:
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["team"], "setuptools"]
    here = wheels("x86_64", wanted, f"--constraint={DEPLOY / 'constraints.txt'}")
    of_cuda = [pin for pin in here if CUDA.match(pin)]
    others = [pin for pin in here if not CUDA.match(pin)]
    write("requirements.lock", others, here, wheels("aarch64", others, "--no-deps"))
    write("requirements-cuda.lock", of_cuda, here)


if __name__ == "__main__":
    main()
