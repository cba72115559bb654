import pytest

from megatron.common import hosts, lsf
from megatron.common.errors import LaunchError

MANY = "batch2 1 h36n03 42 h36n04 42"


def test_the_host_of_the_jobs_script_computes_nothing():
    assert lsf.cores_by_host({"LSB_MCPU_HOSTS": MANY}) == {"h36n03": 42, "h36n04": 42}
    assert lsf.cores_by_host({"LSB_MCPU_HOSTS": "h36n03 1"}) == {"h36n03": 1}
    assert lsf.cores_by_host({}) == {}


def test_the_hosts_of_the_allocation_need_no_host_file(monkeypatch):
    monkeypatch.delenv("DLTS_HOSTFILE", raising=False)
    monkeypatch.setenv("LSB_MCPU_HOSTS", MANY)
    assert hosts.resource_pool(None, num_gpus=2, launcher="jsrun") == {"h36n03": [0, 1], "h36n04": [0, 1]}
    assert hosts.resource_pool(None, num_gpus=1, num_nodes=1, launcher="jsrun") == {"h36n03": [0]}
    assert hosts.resource_pool(None, num_gpus=2, launcher="pdsh") == {}
    with pytest.raises(LaunchError, match="set num_gpus"):
        hosts.resource_pool(None, launcher="jsrun")
