"""Extraction of features on Ray gives the same features as in this process."""

import dataclasses
import pickle
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from envariant import data
from envariant.core import cluster
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary
from envariant.data.tables.table import read_with_texts
from envariant.features import Features, HashedWords
from envariant.features.columns import embedded
from envariant.features.on_ray import Cluster, divided
from envariant.models import model_config

BACKBONE = "mlp(hidden=16)"


def rows(seed=0, count=50):
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(count + k, 12, generator=generator) for k in range(3)]
    members = [Environment(name, x, (x[:, 0] > 0).float()) for name, x in zip("abc", values, strict=True)]
    return EnvironmentSet("rows", tuple(members), Binary())


class FakeRay:
    """Stand-in for the module ray that computes tasks in this process when their results are requested."""

    exceptions = SimpleNamespace(
        RayError=type("RayError", (Exception,), {}), RayTaskError=type("RayTaskError", (Exception,), {})
    )

    def __init__(self):
        self.blocks, self.canceled, self.fails, self.data = [], [], None, None

    def is_initialized(self):
        return True

    def cluster_resources(self):
        return {"CPU": 2.0}

    def put(self, value):
        if self.data is not None:
            value = dataclasses.replace(value, source=self.data)
        stored = pickle.dumps(value)
        return lambda: pickle.loads(stored)

    def remote(self, **_):
        return lambda function: SimpleNamespace(remote=lambda *arguments: (function, arguments))

    def cancel(self, block):
        self.canceled.append(block[1][1:])

    def get(self, what, timeout=None):
        if timeout is not None:
            return None
        if callable(what):
            return what()
        function, arguments = what
        if arguments[1:] == self.fails:
            raise KeyboardInterrupt
        self.blocks.append(arguments[1:])
        try:
            return function(*arguments)
        except EnvariantError as error:
            failure = self.exceptions.RayTaskError("a traceback\nof many lines")
            failure.cause = error
            raise failure from error


@pytest.fixture
def fake(monkeypatch):
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


def inputs(source, folder, **settings):
    features = Features(source, BACKBONE, cache=folder, batch_size=4, standardize=False, **settings)
    return torch.cat([environment.inputs for environment in features.sample(0).environments])


def test_blocks_cover_each_row_once():
    assert divided(0, 10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert divided(8, 10, 4) == [(8, 10)]
    assert divided(10, 10, 4) == []


def test_blocks_of_workers_equal_local_features(tmp_path, fake):
    expected = inputs(rows(), tmp_path / "here")
    assert torch.equal(inputs(rows(), tmp_path / "there", executor="ray"), expected)
    assert fake.blocks[:5] == [(0, 0, 16), (0, 16, 32), (0, 32, 48), (0, 48, 50), (1, 0, 16)]
    files = [sorted((tmp_path / name).rglob("*.npy")) for name in ("here", "there")]
    assert [p.name for p in files[0]] == [p.name for p in files[1]]
    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]
    fake.blocks.clear()
    inputs(rows(), tmp_path / "here", executor="ray")
    assert fake.blocks == []


def test_interrupted_extraction_resumes_after_the_stored_blocks(tmp_path, fake):
    fake.fails = (1, 16, 32)
    with pytest.raises(KeyboardInterrupt):
        inputs(rows(), tmp_path, executor="ray")
    assert fake.canceled == [(1, 16, 32), (1, 32, 48), (1, 48, 51)]
    fake.fails = None
    fake.blocks.clear()
    assert torch.equal(inputs(rows(), tmp_path, executor="ray"), inputs(rows(), tmp_path / "here"))
    assert fake.blocks[0] == (1, 16, 32)


def test_workers_with_other_data_are_an_error(tmp_path, fake):
    fake.data = rows(seed=1)
    with pytest.raises(
        EnvariantError, match=r"^features: a worker of the Ray cluster finds different data at rows;"
    ):
        inputs(rows(), tmp_path, executor="ray")
    assert not list(tmp_path.rglob("*.npy"))


def test_texts_are_encoded_by_workers(tmp_path, fake):
    texts = [f"order {k} was {'late' if k % 2 else 'fine'}" for k in range(600)]
    frame = pd.DataFrame(
        {"review": texts, "shop": ["north", "south"] * 300, "stars": [k % 3 > 0 for k in range(600)]}
    )
    table, encoder = read_with_texts(frame, "stars", "shop"), HashedWords(features=8)
    here, there = (
        embedded(table, (), encoder, tmp_path / name, where)
        for name, where in (("here", None), ("there", Cluster()))
    )
    assert fake.blocks == [(0, 0, 256), (0, 256, 512), (0, 512, 600)]
    for one, other in zip(here.columns, there.columns, strict=True):
        assert one.name == other.name
        assert (one.values == other.values).all()


def test_executor_is_a_setting_but_not_part_of_the_identity(tmp_path):
    here, there = (Features(rows(), BACKBONE, executor=name, cache=tmp_path) for name in ("local", "ray"))
    assert (here.name, here.identity()) == (there.name, there.identity())
    named = data.source("features(colored-digits, 'mlp(hidden=4)', executor=ray, address=auto)")
    assert isinstance(named, Features)
    assert (named.executor, named.address) == ("ray", "auto")
    with pytest.raises(EnvariantError, match="the option 'address' requires executor='ray'"):
        Features(rows(), BACKBONE, address="auto")
    with pytest.raises(EnvariantError, match="executor"):
        Features(rows(), BACKBONE, executor="dask")


def test_missing_ray_names_the_extra_to_install(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(cluster, "import_module", missing)
    with pytest.raises(EnvariantError, match=r"pip install 'envariant\[ray\]', or use the local executor"):
        inputs(rows(), tmp_path, executor="ray")


@pytest.mark.verify
@pytest.mark.filterwarnings("ignore")
def test_two_workers_of_ray_give_the_bits_of_this_process(tmp_path):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'envariant[ray]'")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    try:
        expected = inputs(rows(count=400), tmp_path / "here")
        assert torch.equal(inputs(rows(count=400), tmp_path / "there", executor="ray"), expected)
        # A backbone that is a module is sent to the workers.
        module = model_config(BACKBONE).build((12,), 1)
        sample = [
            Features(rows(), module, cache=tmp_path / name, executor=name).sample(0)
            for name in ("local", "ray")
        ]
        assert sample[0].fingerprint() == sample[1].fingerprint()
    finally:
        ray.shutdown()
        torch.set_num_threads(threads)
