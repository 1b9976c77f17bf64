"""A plan shows the parameters by module, and goes down only where they are treated differently."""

from __future__ import annotations

import pytest

from runner.foresight.parameters import PlannedParameter, Treatment, branches, parameter_table

FROZEN, TRAINED = Treatment("frozen", "0", True, "frozen"), Treatment("trainable", "0.1", True, "")


def planned(name: str, treatment: Treatment, *aliases: str) -> PlannedParameter:
    return PlannedParameter(name, aliases, (3, 5), 15, treatment)


PARAMETERS = [
    planned("token", TRAINED),
    *(planned(f"blocks.{block}.{name}", FROZEN) for block in (0, 1) for name in ("norm.weight", "norm.bias", "up.weight")),
    planned("blocks.2.norm.weight", FROZEN),
    planned("blocks.2.up.weight", TRAINED),
    planned("head.weight", TRAINED, "token_of_head"),
    planned("head.bias", TRAINED),
]


def test_a_module_whose_parameters_are_treated_alike_is_one_branch():
    found = [(branch.name, len(branch.parameters)) for branch in branches(PARAMETERS)]
    assert found == [("token", 1), ("blocks.0", 3), ("blocks.1", 3), ("blocks.2.norm", 1), ("blocks.2.up", 1), ("head", 2)]
    assert [branch.name for branch in branches(PARAMETERS[1:7])] == ["the whole model"]


def test_each_line_has_the_parameters_and_weights_of_its_branch():
    lines = [line.plain for line in parameter_table(PARAMETERS, 120)]
    assert lines == [
        "parameters            count  weights  shape  group       lr  requires_grad  frozen",
        "token                     1       15  3x5    trainable  0.1  True",
        "blocks.0                  3       45         frozen       0  True           frozen",
        "blocks.1                  3       45         frozen       0  True           frozen",
        "blocks.2.norm.weight      1       15  3x5    frozen       0  True           frozen",
        "blocks.2.up.weight        1       15  3x5    trainable  0.1  True",
        "head (1 tied)             2       30         trainable  0.1  True",
    ]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_of_a_plan_is_wider_than_the_terminal_and_no_number_is_cut(width, cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    for more in (("method=zero_lr", "scheduler=one_cycle", "groups=module", "groups.names=[head,there]"), ("freeze=bias",)):
        code, out, _ = cli("plan=true", "model=mlp", "freeze=backbone", "schedule=after", "schedule.step=4", *more)
        assert code == 0
        assert max(map(len, out.splitlines())) <= width
        assert {"kFLOP", "KiB", "0.1"} <= set(out.split())


def test_hazards_come_first_then_the_count_then_the_parameters_then_the_costs(cli):
    _, out, _ = cli("plan=true", "model=mlp", "freeze=backbone", "method=zero_lr")
    assert [line.split()[0] for line in out.splitlines()] == [
        *("hazard:", "7", "parameters", "body", "norm", "there", "back.bias", "head"),
        *("steps", "1-10", "cost:", "330"),
    ]
