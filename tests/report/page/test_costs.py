"""The section about what a step costs."""

from __future__ import annotations

from runner.report.compare.costs import UNFROZEN_TARGET
from runner.report.page.costs import costs_section
from tests.report.page.parsing import section_of, text_of
from tests.report.page.reports import SWEEP, read_sweep
from tests.run_folders import write_run

WHY = "the gradients of what is frozen are computed all the same"
CHEAP = {
    "flops_forward": 100e6,
    "flops_backward": 5e6,
    "saved_bytes": 2048,
    "gradient_bytes": 1024,
    "optimizer_state_bytes": 512,
    "flops_share": 0.35,
    "flops_forward_share": 1.0,
    "flops_backward_share": 0.025,
    "saved_bytes_share": 0.5,
    "gradient_bytes_share": 0.1,
    "optimizer_state_bytes_share": 0.1,
}
DEAR = CHEAP | {"flops_backward": 200e6, "flops_share": 1.0, "flops_backward_share": 1.0, "why_small": WHY}


def write_costs(*contexts: str) -> None:
    for context in contexts or ("optimizer.lr=0.1",):
        write_run(SWEEP, "zero_lr", "freeze=backbone", context, cost=DEAR)
        write_run(SWEEP, "requires_grad", "freeze=backbone", context, cost=CHEAP)


def section():
    return section_of(read_sweep(), "costs")


def cells(row) -> list[str]:
    return [text_of(cell) for cell in row]


def test_each_setting_has_a_row_of_bars_with_figure_and_share_beside_them_the_cheapest_first():
    write_costs()
    table = section().find(".//table")
    assert cells(table.find("thead/tr")) == [
        *("method", "FLOPs a step", "FLOPs forward", "FLOPs backward", "saved activations", "gradients", "optimizer state")
    ]
    rows = table.findall("tbody/tr")
    assert cells(rows[0]) == [
        *("requires_grad", "35% 105 MFLOP", "100% 100 MFLOP", "2.5% 5 MFLOP", "50% 2 KiB", "10% 1 KiB", "10% 512 B")
    ]
    assert cells(rows[1])[:2] == ["zero_lr", "100% 300 MFLOP"]
    assert [bar.get("style") for bar in rows[0].iter("i")][:3] == ["width:35.0%", "width:100.0%", "width:2.5%"]


def test_a_measured_cost_without_a_baseline_says_that_there_is_none_to_compare_with():
    for method, more in (("zero_lr", DEAR), ("requires_grad", CHEAP)):
        write_run(SWEEP, method, cost=more | {"peak_memory_bytes": 2048.0})
    said = "Without a bar: peak memory; no run of method=none to compare with."
    assert said in text_of(section())
    unfrozen = DEAR | {"peak_memory_bytes": 4096.0}
    write_run(SWEEP, "none", cost=unfrozen, method={"_target_": UNFROZEN_TARGET})
    found = section()
    assert "to compare with" not in text_of(found)
    assert {cells(row)[0]: cells(row)[-1] for row in found.findall(".//tbody/tr")}["zero_lr"] == "50% 2 KiB"


def test_what_is_unknown_is_said_and_has_no_bar():
    write_run(SWEEP, "zero_lr", "freeze=fc", cost={"flops_forward": 10.0, "flops_backward": None})
    write_run(SWEEP, "requires_grad", "freeze=fc", cost=CHEAP)
    row = section().findall(".//tbody/tr")[1]
    assert cells(row) == ["zero_lr", "unknown", "10 FLOP", *["unknown"] * 4]
    assert list(row.iter("i")) == []


def test_time_and_peak_memory_have_a_column_only_where_they_were_measured():
    write_costs()
    assert "peak memory" not in text_of(section())
    write_run(SWEEP, "exclude", "freeze=backbone", "optimizer.lr=0.1", cost=CHEAP | {"seconds_step": 0.0125})
    assert cells(section().find(".//thead/tr"))[-1] == "time of a step"
    assert [cells(row)[-1] for row in section().findall(".//tbody/tr")] == ["12.5 ms", "unknown", "unknown"]


def test_a_card_says_finding_saving_and_fix_in_this_order_and_the_fix_can_be_selected_whole():
    write_costs()
    (card,) = section().findall(".//div[@class='costs-card']")
    assert [term.text for term in card.iter("dt")] == ["Finding", "Saving", "Fix"]
    assert [text_of(text) for text in card.iter("dd")][:2] == [
        f"It saves none of the FLOPs of training everything: {WHY}.",
        "requires_grad takes 35% of the FLOPs of training everything: measured here, with the same parameters frozen.",
    ]
    assert next(code.text for code in card.iter("code")) == "method=requires_grad"
    assert {code.get("class") for code in card.iter("code")} == {"paste"}


def test_frozen_sets_are_apart_and_contexts_of_the_same_costs_share_a_group():
    write_costs("optimizer.lr=0.1", "optimizer.lr=0.2", "optimizer.lr=0.3")
    write_run(SWEEP, "requires_grad", "freeze=fc", "optimizer.lr=0.1", cost=DEAR)
    assert [title.text for title in section().iter("h3")] == [
        "Frozen: backbone, with optimizer.lr=0.1, optimizer.lr=0.2 and optimizer.lr=0.3",
        "Frozen: fc, with optimizer.lr=0.1",
    ]


def test_contexts_of_other_costs_are_never_put_together():
    write_costs("data.batch_size=2")
    write_run(SWEEP, "requires_grad", "freeze=backbone", "data.batch_size=4", cost=CHEAP | {"flops_forward": 200e6})
    assert len(list(section().iter("h3"))) == 2


def test_without_costs_there_is_no_section():
    write_run(SWEEP, "zero_lr", "freeze=fc")
    write_run(SWEEP, "detach", "freeze=fc", status="failed", cost={}, rows=())
    assert costs_section(read_sweep()) is None


def test_a_single_run_has_its_bars_and_its_card():
    write_run(SWEEP, "zero_lr", "freeze=fc", cost=DEAR)
    assert len(section().findall(".//tbody/tr")) == 1
    assert "Not measured here." in text_of(section())


def test_what_the_runs_shared_is_said_where_no_costs_were_measured():
    for method in ("zero_lr", "requires_grad"):
        write_run(SWEEP, method, shared={"layer": "avgpool", "batches_read": 64, "batches_stored": 16, "reason": ""})
    said = text_of(section())
    assert "Outputs of the frozen layers up to avgpool were shared: 2 of 2 runs" in said
    assert "bar" not in said
