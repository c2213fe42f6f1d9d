"""More than a thousand faults over one small run: nothing is lost, and the ranking is the same."""

import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flows.chain.recipe import Recipe
from flows.run.execute import execute
from flows.runners.inline import InlineRunner
from storage.backends import retry, s3_client
from storage.backends.retry import Patience
from storage.backends.s3 import S3Backend
from storage.backends.s3_client import PatientS3
from storage.step import Runtime
from storage.store import Store
from tests.faulty import Fault, FaultyProxy
from tests.integration.conftest import Place
from tests.servers import BUCKET

if TYPE_CHECKING:
    from tests.conftest import TinyRecipe
    from tests.servers import S3Server

pytestmark = pytest.mark.slow

LEAST = 1000
"""Faults that a run must outlast; it meets some 1,150."""
OF_EACH = 5
"""Faults of each kind, and on the way to the corpus: the rarest kind is met some 25 times, the corpus,
which is read with few requests, some 15."""

RUNTIME = Runtime(threads=1, checkpoint_seconds=0, chunk=1)


@pytest.fixture
def proxies(
    s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[FaultyProxy, FaultyProxy]]:
    """One for the store, and one for the corpus, whose files have no digest that tells a flip."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(retry, "Patience", partial(Patience, first=0.002, longest=0.02))
    every = tuple(Fault)
    unflipped = tuple(fault for fault in Fault if fault is not Fault.FLIPPED)
    late = (0.001, 0.02)
    with (
        FaultyProxy(s3_server.endpoint, 0.6, seed=1, faults=every, late=late) as store,
        FaultyProxy(s3_server.endpoint, 0.6, seed=2, faults=unflipped, late=late) as corpus,
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", corpus.endpoint)
        yield store, corpus


def recipe_on_s3(tiny_recipe: "TinyRecipe", folder: Path, server: "S3Server", where: str) -> Recipe:
    for path in (folder / "corpus").iterdir():
        server.client().upload_file(str(path), BUCKET, f"{where}/corpus/{path.name}")
    urls = f"corpus.source.urls=['s3://{BUCKET}/{where}/corpus/*.jsonl']"
    return tiny_recipe(folder, urls)


def test_a_thousand_faults_change_nothing(
    proxies: tuple[FaultyProxy, FaultyProxy],
    s3_server: "S3Server",
    tiny_recipe: "TinyRecipe",
    tmp_path: Path,
) -> None:
    on_disk = tiny_recipe(tmp_path)
    calm = execute(InlineRunner(Store(str(tmp_path / "calm")), RUNTIME), on_disk)
    where = uuid.uuid4().hex
    recipe = recipe_on_s3(tiny_recipe, tmp_path, s3_server, where)
    url = f"s3://{BUCKET}/{where}/store"

    def client(name: str) -> Store:
        fs = PatientS3(
            endpoint_url=proxies[0].endpoint,
            config_kwargs=s3_client.CONFIG,
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        return Store(url, tmp_path / name, backend=S3Backend(fs, url.removeprefix("s3://")))

    run = InlineRunner(client("cache"), RUNTIME)
    result = execute(run, recipe)
    again = execute(InlineRunner(client("another cache"), RUNTIME), recipe)
    injected = proxies[0].injected + proxies[1].injected
    print(f"{injected.total()} faults in {sum(proxy.requests for proxy in proxies)} requests")
    assert injected.total() >= LEAST
    assert all(injected[fault] >= OF_EACH for fault in Fault), injected
    assert proxies[1].injected.total() >= OF_EACH

    # What is there now is looked at without faults.
    for proxy in proxies:
        proxy.rate = 0
    place, alone = Place(url), Place(str(tmp_path / "calm"))
    assert place.ranking({"folder": result.folder}) == alone.ranking({"folder": calm.folder})
    assert place.losses() == alone.losses()
    assert result.summary["trained"] == calm.summary["trained"]
    assert (again.summary["trained"], again.summary["losses_evaluated"]) == ([], 0)
    assert result.summary["losses_evaluated"] == calm.summary["losses_evaluated"]
    outputs = [
        # A disk and a bucket have different stamps.
        {(r.key, r.output.digest) for r in one.store.records() if r.step != "stamps"}
        for one in (place, alone)
    ]
    assert outputs[0] == outputs[1]
    assert [path for path in place.store.backend.list("work") if "lease." in path] == []
    place.check_sound()
    # Nothing was set aside: no fault on the way was taken for damage in the store.
    assert place.store.backend.list("work/set-aside") == {}
