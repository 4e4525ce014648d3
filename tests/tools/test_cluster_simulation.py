"""What the simulation of a cluster compares with: tasks divided perfectly."""

from __future__ import annotations

import pytest

pytest.importorskip("distributed", reason="the simulation needs dask and distributed")

from tools.cluster_simulation import Cluster, divided


def test_tasks_go_to_whoever_is_free():
    assert divided([3.0, 2.0, 1.0], Cluster(3, 2, 1, 1)) == 3
    assert divided([3.0, 2.0, 1.0], Cluster(3, 1, 1, 1)) == 6
    # the last task comes to the slow one only if no other is free
    assert divided([1.0], Cluster(1, 2, 4, 1)) == 1
    assert divided([1.0, 1.0], Cluster(2, 2, 4, 1)) == 4
