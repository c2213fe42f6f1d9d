"""Token shares that real loaders draw, against those that were asked for.

Not part of the default set, because it installs packages: `python -m tests.benchmarks exports` makes an
environment of ``exports-requirements.txt`` (1.5 GB, some minutes) in ``EXPORTS_VENV`` (default
``.venv-exports`` at the root). Three sources of documents of unlike lengths are written, a mixture of them is
exported for each trainer, and its loader draws from the export in a process of its own, without mixpool.
Beside it stands what is drawn where a row counts as a block. A loader that cannot be imported is left out,
with a sentence. ``EXPORTS_FORMATS`` names formats.
"""

import json
import os
import shutil
import subprocess
import tempfile
import venv
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd

from flows.export.formats import render
from flows.export.sampling import Rows, sampling_of
from flows.export.sizes import Size
from flows.run.stored import RunContent
from tasks.mixtures.limits import Repetition
from tasks.mixtures.mixture import Mixture
from tests.benchmarks import exports_loaders

ROOT = Path(__file__).parents[2]
REQUIREMENTS = Path(__file__).with_name("exports-requirements.txt")

ASKED = {"short": Fraction(7, 10), "middle": Fraction(2, 10), "long": Fraction(1, 10)}
MEANS = {"short": 50, "middle": 150, "long": 450}
"""Tokens of a document."""
TOKENS = 3_000_000
"""Tokens of each source."""
ROW_LOADERS = {"huggingface": 50_000, "torchdata": 50_000, "litdata": 50_000, "streaming": 50_000}
ROW_LOADERS["grain"] = 10_000  # its mixture is no random one
PACKERS = {"megatron": 1_280_000, "olmo-core": 3_000_000}
"""Rows that are drawn, and tokens."""
NEAR = 0.01
SECONDS = 540
PACKAGES = ("datasets", "torchdata", "grain", "litdata", "mosaicml-streaming", "megatron-core")
VERSIONS = (*PACKAGES, "ai2-olmo-core", "torch", "numpy")


def measure(repeats: int) -> list[str]:
    """The table of shares, and what was left out.

    Raises:
        AssertionError: a loader's shares are ``NEAR`` to those asked for no more.
    """
    del repeats  # every draw has its seed
    asked = os.environ.get("EXPORTS_FORMATS", ",".join({**ROW_LOADERS, **PACKERS})).split(",")
    python = exports_python()
    lines = [
        "| format | tokens drawn | largest difference | with rows taken for blocks |",
        "|---|---|---|---|",
    ]
    left_out, far = [], []
    for format_name in asked:
        found = drawn(python, format_name, "documents")
        if isinstance(found, str):
            left_out.append(f"{format_name}: {found}.")
            continue
        apart = max(abs(found[name] - float(share)) for name, share in ASKED.items())
        far += [format_name] * (apart > NEAR)
        blocks = drawn(python, format_name, "blocks") if format_name in ROW_LOADERS else None
        other = _shares(blocks) if isinstance(blocks, dict) else "packs by itself"
        lines.append(f"| {format_name} | {_shares(found)} | {apart:.4f} | {other} |")
        print(lines[-1], flush=True)
    assert not far, f"{far} draw other shares than {ASKED}"
    asked_for = " / ".join(f"{float(share):g}" for share in ASKED.values())
    means = ", ".join(f"{mean} ({name})" for name, mean in MEANS.items())
    words = f"Asked for: {asked_for} of tokens, of documents of {means} tokens on average."
    return ["\n".join(lines), words, *left_out, versions(python)]


def exports_python() -> Path:
    """Python of the other environment, which is made if it is missing or has other requirements."""
    folder = Path(os.environ.get("EXPORTS_VENV", ROOT / ".venv-exports")).absolute()
    installed, python = folder / REQUIREMENTS.name, folder / "bin" / "python"
    if not installed.exists() or installed.read_text() != REQUIREMENTS.read_text():
        venv.create(folder, with_pip=True, clear=True)
        # All is listed: two of the packages name versions of a third that exclude one another.
        pip: list[str | Path] = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--requirement",
            REQUIREMENTS,
        ]
        subprocess.run(pip, check=True)
        shutil.copyfile(REQUIREMENTS, installed)
    return python


def drawn(python: Path, format_name: str, rows: Rows) -> dict[str, float] | str:
    """Shares of tokens by source, or why there are none."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, format_name, rows)
        most = {**ROW_LOADERS, **PACKERS}[format_name]
        command: list[str | Path] = [
            python,
            Path(exports_loaders.__file__),
            folder,
            format_name,
            str(most),
        ]
        quiet = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache"), "HOME": str(folder)}
        result = subprocess.run(
            command,
            env=os.environ | quiet,
            cwd=folder,
            text=True,
            capture_output=True,
            timeout=SECONDS,
        )
        if result.returncode:
            raise RuntimeError(f"{format_name} failed: {result.stderr[-2000:]}")
        found = json.loads(result.stdout.splitlines()[-1])
    if "left out" in found:
        return str(found["left out"])
    whole = sum(found.values())
    return {name: found.get(str(number), 0) / whole for number, name in enumerate(ASKED)}


def write(folder: Path, format_name: str, rows: Rows) -> None:
    """Sources of documents, their lengths and the export."""
    generator, held, paths = np.random.default_rng(0), {}, []
    lengths = {}
    for number, (name, mean) in enumerate(MEANS.items()):
        counts = generator.integers(mean // 2, mean + mean // 2, TOKENS // mean, endpoint=True)
        lengths[name] = counts.tolist()
        total = int(counts.sum())
        held[f"{name}-0"] = Size(total, len(counts), 4 * total, total)
        pd.DataFrame({"source": number, "length": counts}).to_parquet(folder / f"{name}.parquet")
        place = {"megatron": f"/{name}", "olmo-core": f"/{name}.npy"}.get(format_name, f"/{name}")
        own = f"{folder}/{format_name}-data{place}"
        is_opened = format_name in {"huggingface", "torchdata", "grain"}
        paths.append(f"{name}={folder / f'{name}.parquet' if is_opened else own}")
    (folder / "lengths.json").write_text(json.dumps(lengths))
    names = {name: name.rpartition("-")[0] for name in held}
    run = RunContent("run", {"recipe": "exports", "models": names, "domains": names})
    mixture = Mixture.of({f"{name}-0": int(share * 10) for name, share in ASKED.items()})
    length = Repetition(tokens=PACKERS.get(format_name, TOKENS))
    sampling = sampling_of(run, mixture, held, paths=paths, rows=rows, repetition=length)
    (folder / format_name).write_text(render(format_name, sampling))


def _shares(found: dict[str, float]) -> str:
    return " / ".join(f"{found[name]:.4f}" for name in ASKED)


def versions(python: Path) -> str:
    """What the other environment has."""
    code = (
        "from importlib.metadata import version as v;"
        f"print(', '.join(f'{{n}} {{v(n)}}' for n in {VERSIONS!r}))"
    )
    found = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return f"Theirs: {found.stdout.strip()}."
