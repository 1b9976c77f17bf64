"""DTensors in one process: what is local, which shard it is, and what is compared."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from runner import audit
from runner.errors import ConfigError
from runner.proof.changes import digest_of, measure_change
from runner.shards import is_dtensor, is_gathered, local, put_shards_back, refuse_several_processes, shard_of
from runner.tensors import copy_of, has_values, memory_overlaps, refuse_unreadable, same_bits
from tests.test_imports import run_python


@pytest.fixture
def mesh():
    """Return a device mesh of one process."""
    from torch.distributed.tensor import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def sharded(tensor: Tensor, mesh, dim: int = 0) -> Tensor:
    """Return a DTensor with the values of a tensor, sharded along a dimension."""
    from torch.distributed.tensor import Shard, distribute_tensor

    return distribute_tensor(tensor.clone(), mesh, [Shard(dim)])


@pytest.mark.long
def test_an_audit_of_a_plain_model_imports_nothing_of_torch_distributed_that_torch_does_not():
    run_python(
        "import torch\nmodel = torch.nn.Linear(2, 2)\noptimizer = torch.optim.SGD(model.parameters(), 0.1)\n"
        "model(torch.ones(1, 2)).sum().backward(); optimizer.step()\n"
        "before = {name for name in sys.modules if name.startswith('torch.distributed')}\n"
        "from runner import audit\n"
        "with audit(model, ['bias']) as report: optimizer.step()\n"
        "assert report.leaks == ['bias'], str(report)\n"
        "new = {name for name in sys.modules if name.startswith('torch.distributed')} - before\nassert not new, new"
    )


def test_the_local_part_of_a_dtensor_is_in_its_memory_and_any_other_tensor_is_its_own(mesh):
    plain, tensor = torch.ones(2, 2), sharded(torch.ones(2, 2), mesh)
    assert local(plain) is plain
    assert not is_dtensor(plain)
    local(tensor).add_(1)
    assert tensor.full_tensor().tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert (shard_of(plain), shard_of(tensor)) == ((), (0,))


def test_dtensors_are_compared_and_measured_by_their_local_parts(mesh):
    tensor = sharded(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), mesh)
    before, digest = copy_of(tensor), digest_of(tensor)
    assert same_bits(before, tensor)
    assert has_values(tensor)
    assert memory_overlaps(tensor, local(tensor)[:1])
    assert not memory_overlaps(tensor, before)
    local(tensor)[0, 0] = -0.0
    assert not same_bits(before, tensor)
    assert digest_of(tensor) != digest
    assert (measure_change(before, tensor).moved, measure_change(before, tensor).moved_elements) == (True, 1)


def test_equal_parts_that_are_sharded_in_another_way_are_not_the_same(mesh):
    rows, columns = sharded(torch.ones(2, 2), mesh), sharded(torch.ones(2, 2), mesh, dim=1)
    assert not same_bits(rows, columns)
    assert not same_bits(rows, torch.ones(2, 2))
    change = measure_change(rows, columns)
    assert (change.moved, change.change_l2, change.moved_elements) == (True, None, None)


def test_a_plain_tensor_may_be_gathered_from_a_dtensor_and_never_the_other_way_round(mesh):
    plain, tensor = torch.ones(2, 2), sharded(torch.ones(2, 2), mesh)
    assert is_gathered(plain, tensor)
    assert not is_gathered(tensor, tensor)
    assert not is_gathered(tensor, plain)
    assert not is_gathered(plain, plain)


def test_dtensors_are_readable_but_a_run_refuses_them(mesh):
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(sharded(model.weight.detach(), mesh))
    refuse_unreadable(model)
    put_shards_back(model)  # it has no FSDP module
    with pytest.raises(ConfigError, match=r"^model: weight is a DTensor \(sharded\); use one process and dense tensors$"):
        refuse_several_processes(model)


def test_dtensors_without_values_are_refused(mesh):
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(sharded(torch.ones(2, 2, device="meta"), mesh))
    with pytest.raises(ConfigError, match="weight is on the meta device"), audit(model, ["bias"]):
        pass


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("frozen", [["weight"], ["bias"]])
def test_a_model_whose_shards_are_all_in_this_process_is_audited_without_a_collective(mesh, foreach, frozen):
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(nn.Linear(2, 2), mesh=mesh)
    dict(model.named_parameters())[frozen[0]].requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, foreach=foreach)
    with audit(model) as held, audit(model, ["**"]) as leaked:
        for _ in range(2):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    assert [row["name"] for row in held.rows if row["frozen"]] == frozen
    assert held.leaks == held.notes == []
    assert {row["name"]: row["cause"] for row in leaked.rows if row["verdict"] == "leaked"} == {
        name: "gradient" for name in ("weight", "bias") if name not in frozen
    }
