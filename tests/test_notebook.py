"""`run` and `audit` work in a notebook, with a real kernel."""

from __future__ import annotations

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.long

RUN = """
from runner import run
result = run("model=mlp", "method=zero_lr", "freeze=head", "batches=2")
print(result.verdict, len(result.rows), result.folder.exists())
"""

AUDIT = """
import torch
from runner import audit

model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
with audit(model, ["0"], optimizer) as report:
    for _ in range(3):
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
print(report.leaks, list(report.frame.verdict))
"""

CONFIG_ERROR = """
try:
    run("model=mlp", "freeze=fc")
except ValueError as error:
    print("refused")
"""


def test_run_and_audit_work_in_a_notebook_and_a_config_error_does_not_end_its_kernel():
    cells = [nbformat.v4.new_code_cell(text) for text in (RUN, AUDIT, CONFIG_ERROR)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    printed = ["".join(part.get("text", "") for part in cell.outputs if part.get("name") == "stdout") for cell in cells]
    assert printed == [
        "held 12 True\n",
        "['0.weight', '0.bias'] ['leaked', 'leaked', 'trained', 'trained']\n",
        "refused\n",
    ]
