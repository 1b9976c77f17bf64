"""What `test_processes.py` runs in two processes: `python -m tests.proof.process_scenarios RANK FOLDER` for each rank."""

from __future__ import annotations

import pickle
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from runner import audit
from runner.proof.audit_report import Report
from runner.proof.processes.exchange import ranks_of
from runner.tensors import refuse_unless_dense

SCENARIOS = {}  # {name: function}


def scenario(function):
    """Add a function to those that are run, in both processes."""
    SCENARIOS[function.__name__] = function
    return function


def rank() -> int:
    return dist.get_rank()


def net() -> nn.Sequential:
    """Return a small model; of "2.weight", which has one row, the second process holds no element."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 1))


def shard(model: nn.Module, **options) -> nn.Module:
    """Apply `fully_shard` to each layer and to the model."""
    for layer in model.children():
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def sharded(frozen: tuple[int, ...] = (), **options) -> nn.Module:
    model = net()
    for number in frozen:
        model[number].requires_grad_(False)
    return shard(model, **options)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        model(torch.ones(3, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def adam(model: nn.Module, **options) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.1, **options)


def told(report: Report) -> dict:
    """Return what a report says."""

    def error_of(method) -> str:
        try:
            method()
        except AssertionError as error:
            return str(error)
        return ""

    return {
        "rows": {row["name"]: row for row in report.rows},
        "looks": report.looks,
        "notes": report.notes,
        "leaked": error_of(report.raise_if_leaked),
        "unsound": error_of(report.raise_if_unsound),
        "text": str(report),
    }


@torch.no_grad()
def write(tensor: Tensor, on_rank: int) -> None:
    """Add 1 to the local part of a tensor in one process."""
    if rank() == on_rank:
        (tensor.to_local() if isinstance(tensor, DTensor) else tensor).add_(1)


# FSDP2


@scenario
def fsdp_mixed_flags():
    model = sharded(frozen=(0, 2))
    optimizer = adam(model)
    with audit(model) as report:
        train(model, optimizer)
    return told(report)


@scenario
def one_process():
    model = net()
    for number in (0, 2):
        model[number].requires_grad_(False)
    optimizer = adam(model)
    with audit(model) as report:
        train(model, optimizer)
    return told(report)


@scenario
def fsdp_all_frozen_by_name_only():
    model = sharded()
    optimizer = adam(model)
    with audit(model, ["0", "2.weight"]) as report:
        train(model, optimizer)
    return told(report)


@scenario
def fsdp_columns():
    model = sharded(shard_placement_fn=lambda parameter: Shard(1) if parameter.shape == (6, 4) else None)
    optimizer = adam(model)
    with audit(model, ["0"], optimizer) as report:
        train(model, optimizer)
    return told(report)


@scenario
def fsdp_zeros_with_weight_decay():
    model = sharded()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    with audit(model, ["0"]) as report:
        for _ in range(3):
            model(torch.ones(3, 4)).sum().backward()
            for parameter in model[0].parameters():
                parameter.grad.zero_()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    return told(report)


@scenario
def fsdp_momentum():
    model = sharded()
    optimizer = adam(model)
    with audit(model, []) as report:
        train(model, optimizer)
        report.freeze(["0"])
        for _ in range(3):
            model(torch.ones(3, 4)).sum().backward()
            for parameter in model[0].parameters():
                parameter.grad.zero_()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    return told(report)


@scenario
def fsdp_scheduler():
    model = sharded()
    optimizer = torch.optim.SGD(
        [{"params": list(model[0].parameters()), "lr": 0.0}, {"params": list(model[1].parameters())}], lr=0.1
    )
    with audit(model, ["0"]) as report:
        train(model, optimizer, 2)
        optimizer.param_groups[0]["lr"] = 0.1
        train(model, optimizer, 4)
    return told(report)


@scenario
def fsdp_write_on_rank_1():
    model = sharded(frozen=(0,))
    optimizer = adam(model)
    with audit(model) as report:
        train(model, optimizer, 1)
        write(model[0].weight, on_rank=1)
        train(model, optimizer, 2)
    return told(report)


@scenario
def fsdp_write_to_the_only_row():
    model = sharded(frozen=(2,))
    optimizer = adam(model)
    with audit(model) as report:
        train(model, optimizer, 1)
        write(model[2].weight, on_rank=0)
        write(model[2].weight, on_rank=1)  # it has no element there
        train(model, optimizer, 2)
    return told(report)


@scenario
def fsdp_nan_on_rank_1():
    model = sharded(frozen=(0,))
    optimizer = adam(model)
    with audit(model) as report:
        train(model, optimizer, 1)
        if rank() == 1:
            with torch.no_grad():
                model[0].weight.to_local()[0, 0] = torch.nan
    return told(report)


@scenario
def fsdp_frozen_on_rank_0_alone():
    model = sharded()
    with audit(model, ["0"] if rank() == 0 else []):
        train(model, adam(model))


@scenario
def fsdp_frozen_in_mid_run_on_rank_0_alone():
    model = sharded()
    with audit(model, ["1"]) as report:
        if rank() == 0:
            report.freeze(["0.bias"])


@scenario
def fsdp_unfrozen_on_rank_0_alone():
    model = sharded(frozen=(0,))
    with audit(model) as report:
        if rank() == 0:
            report.unfreeze(["0"])
        write(model[0].weight, on_rank=0)


@scenario
def fsdp_report_after_other_declarations():
    model = sharded()
    try:
        with audit(model, ["0"] if rank() == 1 else []) as report:
            write(model[0].weight, on_rank=0)
    except ValueError:
        report.raise_if_leaked()


class Rows(nn.Module):
    """An embedding of which only the last row is used: the first process holds none that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Embedding(4, 2), nn.Embedding(4, 2)
        self.head = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.used(x) + 0 * self.unused(x))


@scenario
def fsdp_idle_on_rank_0():
    torch.manual_seed(0)
    model = fully_shard(Rows())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with audit(model, ["head.bias"]) as report:
        for _ in range(2):
            model(torch.tensor([3])).sum().backward()
            model.head.bias.grad = None
            optimizer.step()
            optimizer.zero_grad()
    return told(report)


@scenario
def fsdp_validation_at_the_end():
    model = net()
    model[0].requires_grad_(False)
    model = fully_shard(model)  # the root keeps what it has gathered until backward
    optimizer = adam(model)
    gathered = []
    with torch.no_grad():
        model(torch.ones(3, 4))
    with audit(model) as report:
        train(model, optimizer)
        with torch.no_grad():
            model(torch.ones(3, 4))
        gathered += [type(parameter) is not DTensor for parameter in model.parameters()]
    return {**told(report), "gathered": any(gathered)}


@scenario
def fsdp_every_step():
    model = net()
    model[0].requires_grad_(False)
    model = fully_shard(model)
    optimizer = adam(model)
    with audit(model, every=1, watch_forward=True) as report:
        train(model, optimizer)
    return told(report)


@scenario
def fsdp_every_step_leaks():
    model = fully_shard(net())
    optimizer = adam(model)
    with audit(model, ["0"], every=1) as report:
        train(model, optimizer)
    return told(report)


@scenario
def fsdp_write_after_validation():
    model = fully_shard(net())
    with audit(model, ["0"], every=1) as report:
        with torch.no_grad():
            model(torch.ones(3, 4))
        model.reshard()
        write(model[0].weight, on_rank=1)
    return told(report)


@scenario
def fsdp_freeze_and_unfreeze_after_validation():
    model = fully_shard(net())
    optimizer = adam(model)
    with audit(model, []) as report:
        train(model, optimizer, 1)
        with torch.no_grad():
            model(torch.ones(3, 4))
        report.freeze(["0", "1"])
        model[0].requires_grad_(False)
        for module in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
            module.requires_grad_(False)
        report.unfreeze(["1"])
    return told(report)


@scenario
def fsdp_phases():
    def phases_of(model: nn.Module) -> dict:
        optimizer = adam(model)
        with audit(model, ["0"], optimizer) as report:
            train(model, optimizer, 2)
            report.unfreeze(["0"])
            model[0].weight.requires_grad_(True)
            train(model, optimizer, 1)
            report.freeze(["1"])  # and yet it trains
            train(model, optimizer, 1)
        return {(each.first_step, each.last_step): {row["name"]: row for row in each.rows} for each in report.phases}

    plain = net()
    plain[0].requires_grad_(False)
    return {"sharded": phases_of(sharded(frozen=(0,))), "plain": phases_of(plain)}


@scenario
def fsdp_parameter_replaced_by_a_plain_one():
    model = sharded(frozen=(0,))
    with audit(model) as report:
        model[0].weight = nn.Parameter(torch.ones(6, 4))
    return told(report)


@scenario
def fsdp_entered_before():
    model = net()
    model[0].requires_grad_(False)
    with audit(model):
        shard(model)
        train(model, adam(model))


@scenario
def fsdp_entered_before_without_a_step():
    model = net()
    with audit(model, ["0"]):
        shard(model)


@scenario
def fsdp_exception_in_the_block():
    model = sharded(frozen=(0,))
    with audit(model):
        train(model, adam(model), 1)
        raise KeyError("mine")


@scenario
def fsdp_report_after_an_exception():
    model = sharded(frozen=(0,))
    optimizer = adam(model)
    try:
        with audit(model) as report:
            train(model, optimizer, 1)
            write(model[0].weight, on_rank=1)
            raise KeyError("mine")
    except KeyError:
        return told(report)


@scenario
def fsdp_raise_at_look():
    model = sharded(frozen=(0,))
    optimizer = adam(model)
    with audit(model, raise_at_look=True):
        train(model, optimizer, 1)
        write(model[0].weight, on_rank=1)
        train(model, optimizer, 3)  # would wait forever if one rank had raised


@scenario
def fsdp_until():
    model = sharded(frozen=(0, 2))
    optimizer = adam(model)
    with audit(model, until=1) as report:
        train(model, optimizer, 2)
        write(model[0].weight, on_rank=1)
    return told(report)


@scenario
def fsdp_until_holds():
    model = fully_shard(net())
    optimizer = adam(model)
    with audit(model, [], until=1) as report:
        train(model, optimizer, 2)
        for _ in range(2):
            with torch.no_grad():
                model(torch.ones(3, 4))
            report.freeze(["0"])
        with torch.no_grad():
            model(torch.ones(3, 4))
    return told(report)


@scenario
def fsdp_frozen_buffers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].requires_grad_(False).eval()
    fully_shard(model)
    optimizer = adam(model)
    with audit(model, buffers="frozen") as report:
        train(model, optimizer, 1)
        write(model[1].running_mean, on_rank=1)
        train(model, optimizer, 1)
    return told(report)


@scenario
def hsdp():
    return hybrid((2, 1))


@scenario
def hsdp_one_replica():
    return hybrid((1, 2))


def hybrid(shape: tuple[int, int]):
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
    model = sharded(frozen=(0,), mesh=mesh)
    optimizer = adam(model)
    with audit(model) as report:
        train(model, optimizer, 1)
        write(model[0].weight, on_rank=0)
        write(model[0].weight, on_rank=1)
    return told(report)


@scenario
def fsdp_bfloat16():
    model = net().bfloat16()
    model[0].requires_grad_(False)
    shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with audit(model) as report:
        for _ in range(2):
            model(torch.ones(3, 4, dtype=torch.bfloat16)).sum().backward()
            optimizer.step()
    return told(report)


class GlobalNorm(torch.optim.SGD):
    """Divides each step by a norm over all processes."""

    def step(self, closure=None):
        total = sum(each.grad.to_local().square().sum() for each in self.param_groups[0]["params"] if each.grad is not None)
        total = torch.as_tensor(total)
        dist.all_reduce(total)
        self.param_groups[0]["lr"] = 0.1 / (1 + float(total))
        return super().step()


@scenario
def fsdp_optimizer_with_a_collective():
    model = sharded()
    optimizer = GlobalNorm(model.parameters(), lr=0.1)
    with audit(model, ["0"]) as report:
        train(model, optimizer)
    return told(report)


@scenario
def fsdp_replay_on_rank_1_alone():
    model = sharded(frozen=(0,))
    optimizer = GlobalNorm([*model[0].parameters(), *model[1].parameters()], lr=0.1, momentum=0.5)
    with audit(model, every=1) as report:
        train(model, optimizer, 1)
        if rank() == 1:  # a gradient that only this process has
            model[0].weight.grad = torch.ones_like(model[0].weight)
        train(model, optimizer, 3)
    return told(report)


@scenario
def fsdp_optimizer_with_a_norm_of_a_dtensor():
    class Lamb(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self, closure=None):
            for parameter in self.param_groups[0]["params"]:
                if parameter.grad is not None:
                    norm = torch.linalg.vector_norm(parameter.grad).full_tensor()
                    parameter.add_(parameter.grad, alpha=-0.1 / (1 + float(norm)))

    model = sharded()
    optimizer = Lamb(model.parameters(), {})
    with audit(model, ["0"]) as report:
        train(model, optimizer)
    return told(report)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.middle = nn.Linear(4, 4)
        self.head.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.inner(x)))


@scenario
def fsdp_tied():
    torch.manual_seed(0)
    model = fully_shard(Tied())
    optimizer = adam(model)
    with audit(model, ["head"]) as report:
        for _ in range(2):
            model(torch.tensor([0, 1])).sum().backward()
            optimizer.step()
        with torch.no_grad():
            model(torch.tensor([0, 1]))
    return told(report)


@scenario
def tensor_parallel_and_fsdp():
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    results = {}
    for shape in ((2, 1), (1, 2)):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor"))
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4), nn.LayerNorm(4))
        parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
        model[0].requires_grad_(False)
        model = fully_shard(model, mesh=mesh["data"])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, foreach=False)  # its tensors are on several meshes
        with audit(model, every=1) as report:
            train(model, optimizer)
            with torch.no_grad():
                model(torch.ones(3, 4))
        results[shape] = told(report)
        with audit(model, ["0", "1"]) as report:
            train(model, optimizer, 1)
            write(model[0].weight, on_rank=1)
        results[shape, "leaked"] = told(report)
    return results


@scenario
def fsdp1():
    from torch.distributed.fsdp import FullyShardedDataParallel

    wrapped = nn.Module.__new__(FullyShardedDataParallel)  # making one takes an accelerator
    nn.Module.__init__(wrapped)
    wrapped.layer = net()
    with audit(nn.Sequential(wrapped), []):
        pass


@scenario
def parameter_held_by_others():
    model = net()
    model[0].weight.data = torch.empty(0)
    model[0].weight.ds_numel = 24  # as DeepSpeed ZeRO-3 does
    with audit(model, ["0"]):
        pass


# DTensors without FSDP


class Holder(nn.Module):
    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


@scenario
def dtensors():
    mesh = init_device_mesh("cpu", (2,))
    full = torch.arange(1.0, 9.0).view(2, 4)
    model = Holder(
        rows=distribute_tensor(full.clone(), mesh, [Shard(0)]),
        columns=distribute_tensor(full.clone(), mesh, [Shard(1)]),
        copies=distribute_tensor(full.clone(), mesh, [Replicate()]),
        kept=distribute_tensor(full.clone(), mesh, [Replicate()]),
        sums=DTensor.from_local(full.clone(), mesh, [Partial()]),
    )
    with audit(model, ["rows", "columns", "copies", "kept", "sums"]) as report:
        for name in ("rows", "columns", "copies", "sums"):
            write(getattr(model, name), on_rank=1)
    return told(report)


@scenario
def dtensor_on_another_rank():
    from torch.distributed.device_mesh import DeviceMesh

    mesh = DeviceMesh("cpu", [0])
    model = Holder(one=DTensor.from_local(torch.ones(2), mesh, [Replicate()]))
    with audit(model, ["one"]) as report:
        pass
    return told(report)


@scenario
def audit_that_fails_on_rank_1():
    model = sharded()
    ranks = ranks_of(model)

    def finish():
        if rank() == 1:
            raise ValueError("no room")

    ranks.complete(Report(), finish)


@scenario
def run_of_several_processes():
    refuse_unless_dense(net())


# Copies of a model


@scenario
def ddp_write_on_rank_1():
    model = net()
    model[0].requires_grad_(False)
    model = DistributedDataParallel(model)
    optimizer = adam(model)
    with audit(model) as report:
        train(model, optimizer, 1)
        write(model.module[0].weight, on_rank=1)
        train(model, optimizer, 2)
    return told(report)


@scenario
def ddp_parameter_without_elements():
    model = net()
    model[1].nothing = nn.Parameter(torch.empty(0))
    model = DistributedDataParallel(model, find_unused_parameters=True)
    with audit(model, ["module.0", "module.1.nothing"]) as report:
        train(model, adam(model.module[1:]))
    return told(report)


@scenario
def ddp_leak():
    model = DistributedDataParallel(net())
    optimizer = adam(model)
    with audit(model, ["module.0"]) as report:
        train(model, optimizer)
    return told(report)


@scenario
def ddp_raise_at_look():
    model = DistributedDataParallel(net())
    optimizer = adam(model)
    with audit(model, ["module.0"], raise_at_look=True):
        train(model, optimizer)


def zero(frozen, **options):
    model = net()
    for number in frozen:
        model[number].requires_grad_(False)
    model = DistributedDataParallel(model)
    optimizer = ZeroRedundancyOptimizer(
        [each for each in model.parameters() if each.requires_grad], torch.optim.Adam, lr=0.1, weight_decay=0.1
    )
    with audit(model, None if frozen else ["module.0"], **options) as report:
        train(model, optimizer, 3)
    return told(report)


@scenario
def zero_holds():
    return zero((0,))


@scenario
def zero_leaks():
    return zero(())


@scenario
def zero_leaks_every_step():
    return zero((), every=1)


@scenario
def zero_gradient_on_one_rank():
    model = net()
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
    with audit(model, ["0", "1"], optimizer) as report:
        optimizer.step()  # without gradients
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter) if rank() == 1 else None
        optimizer.step()
    return told(report)


def main(own_rank: int, folder: Path) -> None:
    """Run all scenarios, and write {name: result} to FOLDER/RANK; an exception is the result (class name, message)."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=own_rank, world_size=2, timeout=timedelta(seconds=60)
    )
    results = {}
    for name, run in SCENARIOS.items():
        try:
            results[name] = run()
        except Exception as error:
            results[name] = {"error": (type(error).__name__, str(error)), "traceback": traceback.format_exc()}
        print(name, flush=True)
        dist.barrier()
    (folder / f"results{own_rank}").write_bytes(pickle.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
