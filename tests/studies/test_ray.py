"""A study on a cluster of three nodes, one of which is killed, gives the same table as on one machine."""

import time
from threading import Thread

import pandas as pd
import pytest

from envariant.core import cluster
from envariant.core.errors import EnvariantError
from envariant.studies import Store, Study, begin, sweep
from envariant.studies.executors import ray as on_ray

SETTINGS = {"steps": 300, "evaluate_every": 100, "model": "mlp(hidden=16)", "precision": "float32"}
STUDY = Study(("colored-digits",), ("erm", "vrex"), n_trials=3, replicas=2, settings=SETTINGS)


def test_missing_ray_names_the_extra_to_install(tmp_path, monkeypatch):
    begin(tmp_path, STUDY).close()

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(cluster, "import_module", missing)
    with pytest.raises(EnvariantError, match=r"pip install 'envariant\[ray\]', or use the local executor"):
        on_ray.sweep(tmp_path)


@pytest.mark.verify
@pytest.mark.filterwarnings("ignore")
def test_killed_node_leaves_the_table_unchanged(tmp_path):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    here, there = tmp_path / "here", tmp_path / "there"
    begin(here, STUDY).close()
    started = time.perf_counter()
    sweep(here, execution="sequential")
    alone = time.perf_counter() - started
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False)
        begin(there, STUDY).close()

        def kill():
            # Once the workers are busy.
            time.sleep(6)
            cluster.remove_node(nodes[0], allow_graceful=False)

        killer = Thread(target=kill)
        killer.start()
        started = time.perf_counter()
        on_ray.sweep(there, execution="sequential")
        apart = time.perf_counter() - started
        killer.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    print(f"alone {alone:.1f} s, three nodes of which one was killed {apart:.1f} s")
    with Store(here) as one, Store(there) as other:
        assert one.counts() == other.counts() == {"planned": 0, "running": 0, "done": 12, "failed": 0}
        pd.testing.assert_frame_equal(one.history(), other.history(), check_exact=True)
        columns = ["id", "algorithm", "trial", "replica", "state", "p_value"]
        pd.testing.assert_frame_equal(one.listing()[columns], other.listing()[columns])
