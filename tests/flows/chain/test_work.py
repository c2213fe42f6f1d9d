"""A sweep is asked for what the losses table lacks, and for nothing else."""

from pathlib import Path

from flows.chain.work import SweepPlan, SweepWork
from storage.artifact import Artifact
from storage.step import Handle
from storage.store import Store
from tasks.evaluation.losses import LossRow
from tasks.evaluation.losses_table import EvaluateConfig, identity
from tasks.evaluation.sweep import Job
from tasks.mixtures.mixture import Mixture

A, B, X, Y = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)


def built(kind: str, **digests: str) -> dict[str, Handle]:
    """Handles by name, which have artifacts of these digests."""
    return {
        name: Handle(name, kind, Artifact(kind=kind, digest=digest, files={}))
        for name, digest in digests.items()
    }


def test_only_what_the_table_lacks_is_a_job(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    one, other = Mixture.uniform(["a"]), Mixture.of({"a": 1, "b": 2})
    pool, sets = built("model", a=A, b=B), built("windows", x=X, y=Y)
    work = SweepWork([one, other], pool, sets, EvaluateConfig())
    a, both = Mixture.uniform([A]), Mixture.of({A: 1, B: 2})
    everything = [Job(a, one.label, ("x", "y")), Job(both, other.label, ("x", "y"))]

    def planned() -> tuple[list[Job], int]:
        found = SweepPlan.of(store, work)
        assert found.names == [identity(a), identity(both)]
        return found.jobs, found.num_known

    assert planned() == (everything, 0)
    table = SweepPlan.of(store, work).table
    table.append([LossRow(identity(a), Y, "a", "y", 1.0, [1.0])], {})
    assert planned() == ([everything[0]._replace(sets=("x",)), everything[1]], 1)
    table.append([LossRow(identity(a), X, "a", "x", 1.0, [1.0])], {})
    assert planned() == ([everything[1]], 2)
