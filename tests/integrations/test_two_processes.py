"""The callbacks in two processes (gloo, on this machine): each process audits its own copy of the model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

LIMIT = 280  # seconds
SCRIPT = Path(__file__).with_name("two_processes.py")
FROZEN = {"lightning": "backbone.0.bias", "transformers": "transformer.wpe.weight"}

pytestmark = pytest.mark.long  # each test starts two processes that import a large library


@pytest.mark.timeout(LIMIT + 20)
@pytest.mark.parametrize("library", FROZEN)
def test_each_process_audits_its_own_copy_and_one_of_them_speaks_for_both(library, tmp_path):
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": loopback, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = subprocess.run(
        [*command, str(SCRIPT), library, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=LIMIT,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    leak = f"1 frozen tensor leaked: {FROZEN[library]}"
    for rank, (sound, written) in enumerate(told):
        assert sound["error"] == ""
        assert sound["verdicts"][FROZEN[library]] == "held"
        assert f"rank {rank} of 2: this report is about the tensors of this process alone" in sound["notes"]
        assert (leak in written["error"]) == (rank == 1)
    assert told[0][0]["verdicts"] == told[1][0]["verdicts"]
    assert process.stdout.count("frozen tensors held") == 2  # by rank 0, after each training
    assert process.stdout.count(leak) == 1  # by rank 1, for its own copy
    assert {path.name for path in (tmp_path / "written-on-1").iterdir()} == {"changes.csv", "rank1-changes.csv"}
