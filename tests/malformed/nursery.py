"""Carries out cases one after another, each in a fork of a process that has imported what they need.

It works in the current folder and writes one JSON line for each case that it has carried out. A fork takes
some milliseconds, and a crash, a hang or what the case leaves in memory ends with it. The process
itself carries nothing out: threads of libraries, which a command starts, would be missing in its forks.
"""

import argparse
import contextlib
import gc
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from flows.chain.recipe_file import RecipeDumper, parse_recipe, to_yaml
from flows.command.main import main as command_line
from tests.conftest import TINY, write_corpus
from tests.malformed import GROUND, Case

SECONDS = 20
MEGABYTES = 2000
LINES = 40
"""How much of a processor and memory a case may take, and how long its error may be."""
PATIENCE = 3 * SECONDS
"""Seconds after which a case hangs: other programs may be using the processor."""

CHANGING = {"store", "state", "cache", "tmp", "out", "out.yaml"}
"""What a command may change in the folder where it is started."""

UNEXPECTED = "a fault of mixpool"
"""What the command line says of an error that nobody foresaw."""

HEAVY = """
lightgbm pandas pyarrow.dataset pyarrow.parquet scipy.stats sklearn.gaussian_process torch
transformers.models.llama.modeling_llama flows.command.summary flows.command.table_search
flows.export.export flows.run.execute flows.run.views flows.runners.inline flows.runners.planner
storage.audit storage.garbage tasks.search.table_search tasks.training.train tasks.evaluation.sweep
"""
"""What commands import where they need it."""

WARM = (
    "plan recipe.yaml --store store --runtime threads=1",
    "plan given.yaml --store new --runtime threads=1",
    "explain recipe.yaml --store store",
    "show ranking --store store",
    "show lineage --json --store store",
    "verify --store store",
    "gc --keep-all --store store",
    "export best --model out --store store",
    "search --losses table.csv --targets loss",
)
"""Commands whose imports a nursery has."""


def main() -> None:
    """Make the ground where there is none, and carry out the cases that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("counts", nargs="+", metavar="KIND=COUNT")
    parser.add_argument(
        "--first", type=int, default=0, help="which case of each kind to begin with"
    )
    parser.add_argument("--step", type=int, default=1, help="carry out each STEPth case")
    parser.add_argument("--keep", action="store_true", help="leave folders and output")
    arguments = parser.parse_args()
    _import_everything()
    if not GROUND.given.exists():
        _make_ground()
    sound = _digests(GROUND.folder)
    _warm_up()
    for kind, count in (word.split("=") for word in arguments.counts):
        found = importlib.import_module(f"tests.malformed.{kind}").cases(arguments.seed, int(count))
        for number, case in [*enumerate(found)][arguments.first :: arguments.step]:
            facts = {"kind": kind, "seed": arguments.seed, "number": number, "name": case.name}
            facts["words"] = getattr(case, "words", ())
            folder = Path(f"{kind}-{number}")
            print(json.dumps({**facts, **carry_out(case, folder)}), flush=True)
            if not arguments.keep:
                shutil.rmtree(folder, ignore_errors=True)
    assert _digests(GROUND.folder) == sound, "some case has changed what is sound"


def _import_everything() -> None:
    for name in HEAVY.split():
        importlib.import_module(name)


def _warm_up() -> None:
    """Import what ``WARM`` imports: a fork carries it out, as threads that it starts are in no fork."""
    if not (process := os.fork()):
        os._exit(_warm())
    _, status = os.waitpid(process, 0)
    assert status == 0, Path("warm/output").read_text()
    for name in Path("warm/modules").read_text().split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    shutil.rmtree("warm")
    # Looking for garbage would copy most of this process's memory into each fork.
    gc.collect()
    gc.freeze()


def _warm() -> int:
    """Carry out ``WARM`` in a copy of the ground, and write which modules are there then."""
    shutil.copytree(GROUND.folder, "warm", dirs_exist_ok=True)
    rows = [f"{n / 12},{1 - n / 12},{3 + n * n / 144}" for n in range(13)]
    Path("warm/table.csv").write_text("\n".join(["a,b,loss", *rows]))
    os.chdir("warm")
    for stream in (1, 2):
        os.dup2(os.open("output", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    codes = [_carried_out(words.split()) for words in WARM]
    Path("modules").write_text("\n".join(sorted(sys.modules.keys() - {"__main__", __name__})))
    return int(codes != [0] * len(WARM))


def _carried_out(words: Iterable[str]) -> int:
    """Exit code of a command line, in this process."""
    sys.argv = ["mixpool", *words]
    try:
        command_line()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _make_ground() -> None:
    """A corpus, a run of it, and its base model as a model that is given."""
    for folder in ("state", "cache", "tmp"):
        (GROUND.folder / folder).mkdir(parents=True)
    write_corpus(GROUND.folder, documents=20)
    tree: Any = json.loads(json.dumps(TINY))
    tree["corpus"]["source"] = {"urls": ["corpus/*.jsonl"], "include_domains": ["birds", "law"]}
    tree["corpus"]["split"] |= {"tokens_per_partition": 600, "heldout_documents": 2}
    tree["base"]["train"]["steps"], tree["train"]["steps"] = 2, 1
    for path in GROUND.corpus.iterdir():
        if path.stem not in {"birds", "law"}:
            path.unlink()
    GROUND.recipe.write_text(to_yaml(parse_recipe(tree)), encoding="utf-8")
    words = ("run", "recipe.yaml", "--store", "store", "--runtime", "threads=1")
    end = carry_out(Case("ground", lambda _: None, words), GROUND.folder, seconds=300)
    assert end["code"] == 0, (GROUND.folder / "output").read_text()
    store = GROUND.store
    (record,) = store.glob("records/train/base.*.json")
    output = json.loads(record.read_bytes())["content"]["output"]
    shutil.copytree(store / "artifacts/model" / output["digest"], GROUND.model)
    (tokenizer,) = store.glob("artifacts/tokenizer/*")
    shutil.copytree(tokenizer, GROUND.model, dirs_exist_ok=True)
    tree["corpus"]["split"]["base_fraction"] = 0
    tree["corpus"]["source"]["urls"] = [f"{GROUND.corpus.absolute()}/*.jsonl"]
    model = str(GROUND.model.absolute())
    tree["tokenizer"] = tree["base"] = {"kind": "given", "path": model}
    GROUND.given.write_text(yaml.dump(tree, Dumper=RecipeDumper, sort_keys=False), encoding="utf-8")


def carry_out(case: Case, folder: Path, seconds: float = PATIENCE) -> dict[str, Any]:
    """Carry out a case in ``folder``; its end, with ``fault``: what is wrong with that, or None."""
    (folder / "place").mkdir(parents=True, exist_ok=True) if folder != GROUND.folder else None
    began = time.monotonic()
    # Flushed, or each fork would print what waits.
    sys.stdout.flush()
    process = os.fork()
    if not process:
        os._exit(_child(case, folder))
    code, cpu, megabytes, is_late = _watched(process, began + seconds)
    output = (folder / "output").read_text(errors="replace") if (folder / "output").exists() else ""
    errors = (folder / "errors").read_text(errors="replace") if (folder / "errors").exists() else ""
    end = {
        "code": code,
        "seconds": round(time.monotonic() - began, 2),
        "cpu": round(cpu, 3),
        "megabytes": megabytes,
        "said": errors[-2000:] or output[-500:],
        "origin": _origin(folder),
    }
    return {**end, "fault": _fault(code, is_late, megabytes, output, errors, folder)}


def _watched(process: int, until: float) -> tuple[int, float, int, bool]:
    """How a fork ends: exit code (negative: a signal), CPU seconds, most MB, whether it was ended."""
    pause, is_late = 0.002, False
    while True:
        ended, status, usage = os.wait4(process, os.WNOHANG)
        if ended:
            cpu = usage.ru_utime + usage.ru_stime
            return os.waitstatus_to_exitcode(status), cpu, usage.ru_maxrss // 1000, is_late
        is_late = time.monotonic() > until
        if is_late or _resident(process) > MEGABYTES:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)


def _resident(process: int) -> int:
    """Memory of a process in MB. A limit on its addresses would end V8, which reserves very many."""
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize() // 10**6


def _child(case: Case, folder: Path) -> int:
    os.setsid()
    try:
        for stream, name in ((1, "output"), (2, "errors")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        (folder / "origin").touch()
        origin = os.open(folder / "origin", os.O_WRONLY)
        place = folder / "place" if folder != GROUND.folder else folder
        if words := getattr(case, "words", ()):
            case.write(place)
        else:
            words = _given(place)
            (place / "model").mkdir()
            case.write(place / "model")
        _sentinel(place / "beside")
        if folder != GROUND.folder:
            (folder / "before").write_text(json.dumps(_digests(folder)))
        for name, variable in (
            ("tmp", "TMPDIR"),
            ("state", "XDG_STATE_HOME"),
            ("cache", "XDG_CACHE_HOME"),
        ):
            (place / name).mkdir(exist_ok=True)
            os.environ[variable] = str((place / name).absolute())
        os.chdir(place)
        if folder != GROUND.folder:
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        random.seed(0)
        _note_origins(origin)
        return _carried_out(words)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 1


def _note_origins(file: int) -> None:
    """Note where each error that becomes a message was raised: a library's words are seldom good ones."""
    from flows.command import options

    ended = options._ended

    def noted(error: Exception, code: int) -> Any:
        frames = traceback.extract_tb(error.__traceback__)
        where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-3:]))
        root = str(Path(options.__file__).parents[2])
        ours = frames[-1].filename.startswith(root) and ".venv" not in frames[-1].filename
        os.write(file, f"{'' if ours else 'LIB '}{type(error).__name__} {where}".encode())
        return ended(error, code)

    options._ended = noted


def _origin(folder: Path) -> str:
    """Where the error was raised: the last frames of the traceback that was written."""
    if (noted := folder / "origin").exists() and noted.stat().st_size:
        return noted.read_text()
    found = [*folder.rglob("*traceback*.txt")]
    if not found:
        return ""
    lines = found[0].read_text(errors="replace").strip().splitlines()
    frames = [line.strip().rpartition("/")[2] for line in lines if line.startswith('  File "')]
    return " < ".join([lines[-1][:100], *frames[-3:][::-1]])


def _given(place: Path) -> tuple[str, ...]:
    """Write a recipe and a corpus for the model in ``model``, and return the command line."""
    tree: Any = yaml.safe_load(GROUND.given.read_bytes())
    tree["corpus"]["source"]["urls"] = ["corpus/*.jsonl"]
    tree["base"] = {"kind": "given", "path": "model"}
    tree["tokenizer"] = tree["base"] | {"end_of_text": "</s>"}
    (place / "recipe.yaml").write_text(yaml.safe_dump(tree))
    (place / "corpus").mkdir()
    # Of these words the tokenizers of ``models`` know every character.
    words, chance = ["some", "words", "of", "one", "text"], random.Random(0)
    for domain in ("birds", "law"):
        texts = [" ".join(chance.choices(words, k=50)) for _ in range(20)]
        lines = [json.dumps({"text": text}) for text in texts]
        (place / "corpus" / f"{domain}.jsonl").write_text("\n".join(lines) + "\n")
    return ("run", "recipe.yaml", "--store", "store", "--runtime", "threads=1")


def _sentinel(folder: Path) -> None:
    """Files that no command has any business with."""
    for name in (
        "x",
        "records/train/x.json",
        "artifacts/model/x/model.safetensors",
        "runs/x/run.json",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"beside")


def _digests(folder: Path) -> dict[str, str]:
    """Names and content of everything that a command may not change."""
    digests = {}
    own = {folder / name for name in ("output", "errors", "before", "origin")}
    for top, folders, names in os.walk(folder):
        if Path(top) == folder / "place":
            folders[:] = [name for name in folders if name not in CHANGING]
        for name in (*folders, *names):
            path = Path(top) / name
            if path in own or (name in CHANGING and path.parent == folder / "place"):
                continue
            content = b""
            if path.is_symlink():
                content = os.fsencode(path.readlink())
            elif path.is_file():
                content = path.read_bytes()
            digests[str(path).encode(errors="backslashreplace").decode()] = hashlib.sha256(
                content
            ).hexdigest()
    return digests


def _fault(
    code: int, is_late: bool, megabytes: int, output: str, errors: str, folder: Path
) -> str | None:
    said = output + errors
    if is_late or (code in {-signal.SIGXCPU, -signal.SIGKILL} and megabytes <= MEGABYTES):
        return f"takes more than {SECONDS} s"
    if megabytes > MEGABYTES:
        return f"needs more than {MEGABYTES} MB"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    if code not in {0, 1, 2}:
        return f"exit code {code}"
    if "Traceback" in said:
        return "a traceback"
    if "panicked" in said:
        return "a panic"
    if UNEXPECTED in said:
        return "an error that nobody foresaw"
    if code and not said.strip():
        return "says nothing"
    if code and errors.count("\n") > LINES:
        return f"says more than {LINES} lines"
    if code and len(errors) > 200 * LINES:
        return f"says more than {200 * LINES} characters"
    before = folder / "before"
    if before.exists() and json.loads(before.read_text()) != _digests(folder):
        return "changes what is not its own"
    return None


if __name__ == "__main__":
    main()
