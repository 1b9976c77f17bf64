"""Write docs/known_results.md from the raw figures of the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from benchmarks.known_results import digit_tables, freeze_out, memory, rounding, two_linear
from benchmarks.known_results.spreads import percent_and_spread
from benchmarks.known_results.tables import markdown
from benchmarks.results import Row

Rows = Sequence[Row]
TEMPLATE = Path(__file__).with_name("page.md.jinja")


def page(results: Mapping[str, Rows], versions: Mapping[str, str]) -> str:
    """Return the page: `results` has the rows of each part, `versions` those of the libraries that measured them."""
    template = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True).from_string(
        TEMPLATE.read_text()
    )
    return template.render(
        torch=versions["torch"],
        linear=linear(results["two_linear"]),
        digits=digit_tables.texts(results["digits"]),
        freeze_out=freeze_out_table(results["freeze_out"]),
        memory=memory_table(results["memory"]),
        lisa=lisa(results["lisa"]),
        rounding=rounding_table(results["rounding"]),
    )


def linear(rows: Rows) -> Row:
    """Return the texts about LP-FT on two linear layers."""
    cells = [(arm, *(f"{row['expected_error']:.2g}" for row in rows if row["arm"] == arm)) for arm in two_linear.ARMS]
    table = markdown(("what trains", *(f"seed {seed}" for seed in two_linear.SEEDS)), cells)
    loss = max(row["loss_last"] for row in rows)
    return {"steps": f"{two_linear.STEPS:,}", "rate": two_linear.RATE, "table": table, "loss": f"{loss:.0e}"}


def freeze_out_table(rows: Rows) -> Row:
    """Return the texts about what FreezeOut saves, and what its authors' formula predicts."""
    cells, rest = [], 0.0
    for how, (_, t0, factor) in freeze_out.SETTINGS.items():
        predicted, counted = freeze_out.predicted_saving(how), freeze_out.counted_saving(rows, how)
        twice = freeze_out.predicted_saving(how, backward=2)
        multiplied = f"{factor * predicted:.1%}" if factor != 1 else ""
        savings = (f"{predicted:.1%}", multiplied, f"{twice:.1%}", f"{counted:.1%}")
        phases = [row for row in rows if row["how"] == how]
        left = phases[-1]["flops"] / phases[-1]["flops_full"]
        cells.append((f"{how}, t0 {t0:g}", *savings, f"{len(phases)}, from step {phases[1]['first']:,}", f"{left:.1%}"))
        rest = max(rest, abs(counted - twice))
    savings_named = ("predicted saving", "times 1.3", "predicted, backward = 2 forward", "counted")
    headings = ("schedule", *savings_named, "phases; the second", "cost of a step in the last")
    numbers = {"blocks": len(freeze_out.BLOCKS), "steps": f"{freeze_out.STEPS:,}", "rest": f"{100 * rest:.1f}"}
    return {"table": markdown(headings, cells), **numbers}


def memory_table(rows: Rows) -> Row:
    """Return the texts about the memory of block coordinate training."""
    cells = []
    for blocks in memory.DIVISIONS:
        bytes_each = {
            row["dtype"]: sum(row[key] for key in memory.KEPT) / row["weights"] for row in rows if row["blocks"] == blocks
        }
        formulas = (4 + 12 / blocks, 2 + 6 / blocks, 2 + 16 / blocks)
        figures = (bytes_each["float32"], formulas[0], bytes_each["bfloat16"], *formulas[1:])
        cells.append((str(blocks), *(f"{figure:.3f}" for figure in figures)))
    headings = ("D", "float32, counted", "4 + 12/D", "bfloat16, counted", "2 + 6/D", "the paper's 2 + 16/D")
    return {"layers": memory.LAYERS, "weights": f"{memory.WEIGHTS:,}", "table": markdown(headings, cells)}


def lisa(rows: Rows) -> Row:
    """Return the texts about the share of the weights that always train under LISA."""
    (row,) = rows
    return {**{key: f"{value:,}" for key, value in row.items()}, "share": f"{row['always'] / row['trained']:.1%}"}


def rounding_table(rows: Rows) -> Row:
    """Return the texts about how many elements do not move under AdamW."""
    unchanged: dict[tuple[str, float, float], list[float]] = {}
    for row in rows:
        unchanged.setdefault((row["dtype"], row["rate"], row["weight_decay"]), []).append(row["unchanged"])
    cells = [
        (dtype, f"{rate:g}", f"{decay:g}", percent_and_spread(values)) for (dtype, rate, decay), values in unchanged.items()
    ]
    are_equal = unchanged["float32", 1e-6, rounding.DECAY] == unchanged["float32", 1e-6, 0.0]
    as_many = "; without it exactly as many stay" if are_equal else ""
    table = markdown(("dtype", "rate", "weight decay", "unchanged"), cells)
    return {"n": len(rounding.SEEDS), "table": table, "as_many": as_many}
