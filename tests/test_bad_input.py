"""Mistakes in arguments, config files, optimizers, schedules and methods end in one short message without a traceback."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from runner import run
from runner.config.schema import CONF
from runner.errors import ConfigError, SkippedError
from runner.proof.verdict import run_verdict
from tests.conftest import read_table
from tests.in_memory import run_experiment

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
QUICK = ("model=mlp", "batches=2")
LBFGS = ("optimizer=lbfgs", "groups=one", "optimizer.max_iter=4")
MUON_NEEDS_NEWER_TORCH = f"Muon needs torch 2.9 or newer; this is torch {torch.__version__}"
STEP_LR = "torch.optim.lr_scheduler.StepLR"


class NoClosure(torch.optim.Optimizer):
    """SGD whose `step` accepts no closure."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-group["lr"])


class RequiresLr(NoClosure):
    """Like NoClosure, but it cannot be built without a learning rate."""

    def __init__(self, params, lr):
        super().__init__(params, lr)


class RequiresClosure(NoClosure):
    """SGD whose `step` requires a closure."""

    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        super().step()
        return loss


class Matrices(nn.Module):
    """Two matrices, and a vector, which Muon does not accept."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(64, 16), nn.Linear(16, 10, bias=False)

    def forward(self, x):
        return self.head(self.body(x).tanh())


def optimizer_here(name: str) -> tuple[str, str]:
    """Return the overrides that use an optimizer of this file."""
    return "optimizer=custom", f"optimizer._target_={__name__}.{name}"


def with_matrices(*overrides: str) -> tuple[str, ...]:
    """Return the overrides that use the model `Matrices`, and these."""
    model = f"model.build._target_={__name__}.Matrices"
    return "model=custom", model, "model.head=head", "model.input=[64]", "model.classes=10", *overrides


# Overrides and the error that `run_experiment` raises for them

REFUSED = {
    ("optimizer=lbfgs",): r"^optimizer: LBFGS takes one group, not 2 \(frozen, \.\.\.\); give groups=one$",
    ("optimizer=lbfgs", "groups=parameter"): r"^optimizer: LBFGS takes one group, not 9 ",
    (*LBFGS, "optimizer.lrr=1"): r"^optimizer\.lrr: runner\.training\.optimizers\.LBFGS takes no lrr; did you mean lr\?$",
    ("optimizer=sparse_adam", "optimizer.lrr=1"): r"SparseAdam takes no lrr; did you mean lr\?$",
    optimizer_here("RequiresLr"): r"RequiresLr: missing a required argument: 'lr'; its signature is \(params, lr\)$",
    ("scheduler=custom", f"scheduler._target_={STEP_LR}"): r"^scheduler: .* missing a required argument: 'step_size'",
    ("scheduler=custom",): r"^scheduler\._target_ is missing; give scheduler\._target_=\.\.\.$",
    ("scheduler=custom", "scheduler._target_=torch.optim.SGD"): r"^scheduler: torch\.optim\.SGD refused its arguments: ",
    ("scheduler=custom", "scheduler._target_=torch.optim.lr_scheduler.StepLRR"): r"StepLRR.* did you mean StepLR",
    ("schedule=after",): r"^schedule\.step is missing; give schedule\.step=\.\.\.$",
    ("schedule=after", "schedule.step=0"): r"^schedule\.step is 0; give the number of the first step",
    ("schedule=after", "schedule.step=-1"): r"^schedule\.step is -1; give the number of the first step",
    ("schedule=after", "schedule.step=2.5"): r"^schedule\.step is 2\.5; give the number of the first step",
    ("schedule=after", "schedule.step=abc"): r"^schedule\.step is 'abc'; give the number of the first step",
    ("schedule=after", "schedule.step=9"): r"^schedule\.step is 9 and batches is 3: nothing would ever be frozen$",
    ("schedule=custom",): r"^schedule\._target_ is missing",
    ("schedule.step=2",): r"^schedule\.step: runner\.freezing\.schedule\.constant takes no step$",
    ("autocast=maybe",): r"^autocast is 'maybe'; expected true or false$",
    ("method=zero_lr", "method.guard=abc"): r"^method\.guard is 'abc'; .* expects a number or true/false, such as False$",
    ("method=exclude", "method.guard=true"): r"^method\.guard: runner\.methods\.exclude\.Exclude takes no guard$",
    ("method=zero_lr", "method.gaurd=true"): r"^method\.gaurd: .*ZeroLr takes no gaurd; did you mean guard\?$",
    ("method=requires_grad", "method.claen=true"): r"^method\.claen: .* takes no claen; did you mean clean\?$",
    ("optimizer.weight_decay=-1",): r"^optimizer: torch\.optim\.SGD refused its arguments: Invalid weight_decay value: -1$",
    ("optimizer.lr=null",): r"^optimizer\.lr is None; give a learning rate, a number of 0 or more$",
    ("optimizer=adam", "optimizer.betas=0.9"): r"^optimizer: torch\.optim\.Adam refused its arguments: ",
    ("optimizer=adam", "optimizer.betas=[0.9, 2]"): r"refused its arguments: Invalid beta parameter at index 1: 2$",
    ("optimizer=rmsprop", "optimizer.fused=true"): r"^optimizer\.fused: torch\.optim\.RMSprop takes no fused$",
}  # fmt: skip

NEEDS_SECOND_GROUP = "LBFGS takes one group, and this method needs a second for what is frozen"
LR_IS_ZERO = "the line search of LBFGS divides by the learning rate, which is 0 here"
SKIPPED = {
    (*LBFGS, "method=zero_lr"): NEEDS_SECOND_GROUP,
    (*LBFGS, "method=exclude", "schedule=after", "schedule.step=2"): NEEDS_SECOND_GROUP,
    (*LBFGS, "method=zero_lr", "freeze=all"): LR_IS_ZERO,
    (*LBFGS, "method=zero_lr", "freeze=all", "schedule=after", "schedule.step=2"): LR_IS_ZERO,
    (*LBFGS, "optimizer.lr=0"): LR_IS_ZERO,
    ("optimizer=sparse_adam",): "SparseAdam steps sparse gradients alone, such as those of Embedding(sparse=True)",
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.items(), ids=map(" ".join, REFUSED))
def test_a_config_error_is_one_line_that_names_the_key(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        run_experiment(*overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("overrides", "reason"), SKIPPED.items(), ids=map(" ".join, SKIPPED))
def test_a_run_that_the_optimizer_cannot_do_is_skipped_with_a_reason(overrides, reason):
    with pytest.raises(SkippedError) as caught:
        run_experiment(*overrides)
    assert str(caught.value) == reason


def test_muon_with_a_vector_is_skipped_and_the_reason_tells_how_to_give_it_only_matrices():
    with pytest.raises(SkippedError) as caught:
        run_experiment("optimizer=muon")
    problem = "Muon steps only matrices; the group frozen has a tensor of shape 10: "
    remedy = "freeze all others and use method=exclude, or name the matrices: groups=module groups.names=[...]"
    assert str(caught.value) in (problem + remedy, MUON_NEEDS_NEWER_TORCH)


def test_muon_is_skipped_in_an_older_torch_and_the_reason_names_the_version_needed(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(SkippedError) as caught:
        run_experiment("optimizer=muon")
    assert str(caught.value) == MUON_NEEDS_NEWER_TORCH


@pytest.mark.parametrize(
    "overrides",
    [("method=exclude", "freeze.patterns=[body.bias]"), ("groups=module", "groups.names=[body.weight, head]")],
    ids=["exclude", "module"],
)
def test_muon_works_if_it_gets_only_matrices_as_its_message_recommends(overrides):
    if not hasattr(torch.optim, "Muon"):
        return
    result = run_experiment(*with_matrices("optimizer=muon", *overrides))
    assert run_verdict(result.rows) == "held"
    assert [row["name"] for row in result.rows if row["verdict"] == "trained"]


# What works


@pytest.mark.parametrize("name", ["NoClosure", "RequiresClosure"])
def test_custom_optimizers_whose_step_accepts_no_closure_or_requires_one_train_like_sgd(name):
    result, sgd = run_experiment(*optimizer_here(name)), run_experiment("optimizer.momentum=0")
    assert result.losses == sgd.losses
    assert result.record["trained_digest"] == sgd.record["trained_digest"]
    assert run_verdict(result.rows) == "held"


def lbfgs_steps_without_parameters() -> bool:
    """Return whether the LBFGS of this torch can step without parameters."""
    try:
        torch.optim.LBFGS([{"params": []}]).step(lambda: torch.zeros(()))
    except IndexError:
        return False
    return True


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_without_error_if_everything_is_frozen(method, optimizer):
    overrides = LBFGS if optimizer == "lbfgs" else (f"optimizer={optimizer}",)
    try:
        result = run_experiment(f"method={method}", "freeze=all", *overrides, "scheduler=cosine", "clip=1.0")
    except SkippedError:
        assert optimizer == "lbfgs"
        assert method == "zero_lr" or (method in ("exclude", "to_buffer") and not lbfgs_steps_without_parameters())
        return
    assert len(result.steps) == 3
    assert run_verdict(result.rows) == ("leaked" if method == "none" else "held")


@pytest.mark.parametrize("method", ["exclude", "to_buffer", "zero_lr"])
def test_methods_that_empty_groups_run_if_everything_is_frozen_and_each_parameter_is_a_group(method):
    assert len(run_experiment(f"method={method}", "freeze=all", "groups=parameter").steps) == 3


# Through the command line


# Arguments, and a part of the message with which they are refused before a folder is made.
REFUSED_ARGUMENTS = {
    # options
    ("--method", "zero_lr"): "--method is not an option; write method=zero_lr",
    ("--batches=3",): "write batches=3",
    ("--freeze.keep", "[fc]"): "write freeze.keep=[fc]",
    ("--multirn",): "did you mean --multirun",
    ("-x",): "-x is not an option; write key=value, or see --help",
    ("--cfg", "jobs"): "invalid choice: 'jobs'",
    ("--config-dir",): "expected one argument",
    ("--config-dir", "nowhere"): "not found",
    ("--config-path", "nowhere"): "--config-dir DIR adds to it",
    ("--config-name", "nope"): "--config-dir DIR adds to it",
    ("--resolve",): "--cfg",
    ("seed=0", "-m", "seed=1"): "put options such as -m before",
    # brackets, quotes, spaces, equals signs
    ("model.input=[3,64",): "the bracket [ is not closed",
    ("model.input=3,64]",): "the bracket ] is never opened",
    ("groups.lr=[{pattern: head, lr: 1]",): "the bracket { is not closed before ]",
    ("groups.lr=[{pattern=head, lr=1}]",): "write 'groups.lr=[{pattern: fc, lr: 0.1}]'",
    ("seed=${batches",): "the bracket { is not closed",
    ("freeze.patterns=['head]",): "the quote ' is not closed",
    ("freeze.patterns=[“head”]",): "typographic quote “",
    ("freeze=‘head’",): "typographic quote ‘",
    ("freeze.patterns=[head,,body]",): "a value is missing beside a comma",
    ("-m", "method=zero_lr,"): "a value is missing beside a comma",
    ("model.input=(3,64)",): "expected a list, such as model.input=[...]",
    ("optimizer=adam", "optimizer.betas=(0.9,0.99)"): "square brackets: 'optimizer.betas=[0.9,0.99]'",
    ("freeze.patterns=(fc,head)",): "square brackets: 'freeze.patterns=[fc,head]'",
    ("seed=$(date)",): "expected a whole number",
    ("batches =3",): "write batches=3",
    ("batches=3 seed=1",): "quote each one on its own",
    ("seed==3",): "write seed=3",
    ("=3",): "has no key",
    ("\ufeffmodel=mlp",): "has a character that cannot be seen",
    ("freeze=\u200bhead",): "'freeze=\\u200bhead' has a character that cannot be seen",
    ("freeze.patterns=[\udcff]",): "that is not UTF-8",
    ("method=zero lr!",): "there are cached_prefix, detach",
    # a key within a value
    ("++groups.lr.nope=0.1",): "groups.lr has no keys; write groups.lr=[{pattern: fc, lr: 0.1}]",
    ("++freeze.patterns.a=1",): "freeze.patterns has no keys",
    ("++model.input.x=1",): "model.input has no keys",
    ("+seed.x.y=1",): "seed has no keys",
    ("-m", "++groups.lr.nope=0.1,0.2"): "groups.lr has no keys",
    ("++optimizer.lr.x=1",): "optimizer.lr is {'x': 1}; give a learning rate",
    # choices
    ("method=",): "method=: no such choice; there are cached_prefix, detach",
    ("method=null",): "method=null: no such choice; there are cached_prefix",
    ("++method=3",): "no such choice; there are cached_prefix",
    ("~method",): "method has no choice; give method=..., there are cached_prefix",
    ("-m", "method="): "there are cached_prefix, detach",
    # numbers
    ("batches=99999999999999999999999",): "it must be at most 2**63 - 1",
    ("batches=9223372036854775807", "data.epochs=2"): "together more than 2**63 - 1; give fewer",
    ("data=digits", "data.workers=-1"): "data.workers is -1; it must be a whole number of 0 or more",
    ("data=digits", "data.workers=two"): "data.workers is 'two'; it must be a whole number",
    ("data=digits", "data.holdout=1.5"): "data.holdout is 1.5; give the share to hold out, above 0 and below 1",
    ("data=digits", "data.holdout=true"): "data.holdout is True; give the share to hold out",
    ("data=digits", "data.shuffle=maybe"): "data.shuffle is 'maybe'; give true or false",
    ("data=digits", "data.drop_last=1"): "data.drop_last is 1; give true or false",
    ("data.batch_size=99999999999999999999999",): "it must be at most 2**63 - 1",
    ("model.input=[99999999999999999999999]",): "give the shape of one sample",
    ("batches=1.5",): "batches is 1.5; it must be a whole number of 1 or more, auto or all",
    ("batches=[1]",): "batches is [1]; it must be a whole number of 1 or more, auto or all",
    ("batches=",): "batches is ''; it must be a whole number of 1 or more, auto or all",
    ("~batches",): "batches is missing; give batches=...",
    ("clip=inf",): "clip is inf",
    ("optimizer.lr=nan",): "optimizer.lr is nan; give a finite number",
    ("optimizer.lr=1e400",): "optimizer.lr is inf; give a finite number",
    ("optimizer.lr=true",): "optimizer.lr is True; give a learning rate",
    ("optimizer.lr=-0.1",): "optimizer.lr is -0.1; give a learning rate",
    ("optimizer.weight_decay=inf",): "optimizer.weight_decay is inf",
    ("optimizer=adam", "++optimizer.betas=[nan,0.9]"): "optimizer.betas[0] is nan",
    ("scheduler=step", "++scheduler.gamma=nan"): "scheduler.gamma is nan",
    ("scheduler=step", "scheduler.step_size=[1]"): "scheduler.step_size is [1]; expected a number, such as",
    ("optimizer.momentum=abc",): "optimizer.momentum is 'abc'; expected a number, such as",
    ("-m", "optimizer.lr=0.1,nan"): "optimizer.lr is nan",
    ("seed=${oc.env:NO_SUCH_VARIABLE}",): "the environment variable NO_SUCH_VARIABLE is not set",
    ("scheduler=step", "scheduler.step_size=0"): "scheduler.step_size is 0; give a number of steps, 1 or more",
    ("scheduler=cosine", "scheduler.T_max=0"): "scheduler.T_max is 0; give a number of steps",
    ("scheduler=cyclic", "scheduler.step_size_up=-1"): "scheduler.step_size_up is -1; give a number of steps",
    ("scheduler=custom", f"scheduler._target_={STEP_LR}", "++scheduler.step_size=0"): "scheduler.step_size is 0",
    # arguments that a target of ours or of torch's does not take
    ("method=zero_lr", "++method.gaurd=true"): "runner.methods.zero_lr.ZeroLr takes no gaurd; did you mean guard?",
    ("++optimizer.nope=1",): "optimizer.nope: torch.optim.SGD takes no nope",
    ("optimizer=custom", "optimizer._target_=torch.optim.Adam", "++optimizer.betaz=[0.9,0.99]"): "did you mean betas?",
    ("optimizer._target_=torch.optim.SDG",): "torch.optim has no SDG; did you mean",
    ("scheduler=custom", f"scheduler._target_={STEP_LR}"): "missing a required argument: 'step_size'",
    ("++schedule.after=2",): "schedule.after: runner.freezing.schedule.constant takes no after",
    ("++groups.cut.nams=[a]",): "groups.cut.nams: runner.freezing.groups.by_role takes no nams",
    ("++task.smoothing=1",): "task.smoothing: runner.training.tasks.task.BatchTask takes no",
    ("++data.batchsize=1",): "data.synthetic.Synthetic takes no batchsize; did you mean batch_size?",
    ("model=mlp", "++model.build.widht=3"): "model.widht: runner.training.models.MLP takes no widht; did you mean model.w",
    ("-m", "method=zero_lr", "++method.gaurd=true,false"): "did you mean guard?",
    # keys that exist only within files of `conf` are not suggested
    ("method.input=3",): "method.input: no such key; did you mean model.input",
    # lists
    ("groups.lr=[{patern: head, lr: 1}]",): "no such key 'patern'; did you mean pattern?",
    ("groups.lr=[{pattern: [a,b], lr: 1}]",): "give one pattern, and an item of groups.lr for each",
    ("groups.lr=[{pattern: head, lr: 1e400}]",): "groups.lr[0].lr is inf",
    ("groups.lr=[{pattern: head, lr: fast}]",): "groups.lr[0].lr is 'fast'; expected a number",
    ("groups.lr={pattern: head, lr: 1}",): "groups.lr: expected a list",
    ("groups.lr=[0.1]",): "groups.lr[0] is 0.1; expected a pattern and a learning rate",
    ("freeze.patterns=head",): "expected a list, such as freeze.patterns=[head]",
    ("freeze.keep=head",): "expected a list, such as freeze.keep=[head]",
    ("freeze.patterns=null",): "freeze.patterns is None; expected a list",
    ("groups=module", "groups.names=head"): "expected a list, such as groups.names=[head]",
    ("groups=module",): "groups=module needs the modules' names",
    ("model.head=[]",): "give a pattern, a list of patterns, auto, or new",
    # what this machine lacks
    ("data=image_folder", "data.root=nosuch"): "data.root is 'nosuch', which is not a folder",
    ("data=image_folder", "data.root=mine", "model.input=[64]"): "model.input is [64]; give [1 or 3,height,width]",
    ("data=digits", "model.input=[3]"): "model.input is [3]; give [channels,height,width] or [64]",
    ("data=image_folder", "data.root=[a]"): "which is not a folder",
    ("-m", "data=image_folder", "data.root=nosuch"): "which is not a folder",
    ("launch=joblib", "hydra.launcher.n_jobs=0"): "hydra.launcher.n_jobs is 0; give a number of processes",
    ("-m", "launch=joblib", "hydra.launcher.n_jobs=null"): "hydra.launcher.n_jobs is null; give a value",
    ("hydra.run.dir=",): "hydra.run.dir is empty",
    ("-m", "hydra.sweep.dir="): "hydra.sweep.dir is empty",
    ("model.build._target_=Net",): "'Net' is malformed",
    # files of the user, in the folder `mine`
    ("--config-dir", "mine", "freeze=broken"): "mine/freeze/broken.yaml, line 2: ",
    ("--config-dir", "mine", "freeze=doubled"): "mine/freeze/doubled.yaml, line 2: found duplicate key patterns",
    ("--config-dir", "mine", "freeze=latin"): "mine/freeze/latin.yaml, line 3: not UTF-8",
    ("--config-dir", "mine", "freeze=tab"): "any token; indent with spaces",
    ("--config-dir", "mine", "freeze=nul"): "characters are not allowed; remove the character",
    ("--config-dir", "mine", "freeze=a_list"): "freeze is ['fc']; expected the keys freeze.patterns, freeze.keep",
    ("--config-dir", "mine", "freeze=empty"): "freeze.patterns is missing",
    ("--config-dir", "mine", "freeze=spaced"): "write 'freeze.patterns', without a space around it",
    ("--config-dir", "mine", "freeze=within_itself"): "has a YAML alias (*NAME) inside the value that it stands for",
    ("--config-dir", "mine", "freeze=below_itself"): "has a YAML alias (*NAME) inside the value that it stands for",
    ("--config-dir", "mine", "freeze=defaults"): "defaults must be a list",
    ("--config-dir", "mine", "-m", "freeze=broken,fc"): "mine/freeze/broken.yaml, line 2",
}  # fmt: skip

FILES = {
    "broken": b"patterns: [fc\nkeep: []\n",
    "doubled": b"patterns: [fc]\npatterns: [head]\n",
    "latin": "patterns: [fc]\nkeep: []\n# caf\xe9\n".encode("latin-1"),
    "other": "# \xfcber\n".encode("latin-1"),  # it is not asked for, so it must not be named
    "tab": b"patterns:\n\t- fc\n",
    "nul": b"patterns: [\x00]\n",
    "a_list": b"- fc\n",
    "empty": b"",
    "spaced": b"'patterns ': [fc]\n",
    "within_itself": b"patterns: &a [*a]\n",
    "below_itself": b"patterns: [fc]\nkeep: &a {b: *a}\n",
    "defaults": b"defaults: 3\npatterns: [fc]\n",
}


def write_files(folder: Path) -> None:
    """Write FILES as choices of the config group `freeze` into a folder that is given as `--config-dir`."""
    (folder / "freeze").mkdir(parents=True)
    for name, content in FILES.items():
        (folder / "freeze" / f"{name}.yaml").write_bytes(content)


@pytest.mark.parametrize(("arguments", "message"), REFUSED_ARGUMENTS.items(), ids=map(" ".join, REFUSED_ARGUMENTS))
def test_a_wrong_argument_or_file_is_one_line_with_code_2_and_makes_no_folder(cli, arguments, message):
    write_files(Path("mine"))
    code, out, err = cli(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert len(err) <= 401
    assert os.listdir() == ["mine"]


def test_a_config_file_with_a_byte_order_mark_is_read(cli):
    Path("mine/freeze").mkdir(parents=True)
    Path("mine/freeze/marked.yaml").write_bytes(b"\xef\xbb\xbfpatterns: [head]\n")
    assert cli("--config-dir", "mine", *QUICK, "freeze=marked")[0] == 0


def test_a_primary_config_that_does_not_begin_with_ours_is_refused_in_one_line(cli_process):
    Path("primary.yaml").write_text("batches: 3\n")
    process = cli_process("--config-dir", ".", "--config-name", "primary")
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
    assert "begin your config with defaults: [config, _self_]" in process.stderr


@pytest.mark.parametrize("override", ["++groups.lr.nope=0.1", "method=null", "seed=[1"])
def test_a_wrong_override_is_a_config_error_in_python_too(override):
    with pytest.raises(ConfigError, match=r"^(cannot read the argument|method=null: no such choice)"):
        run("model=mlp", override)
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("optimizer=lbfgs",), "give groups=one"),
        (("method=zero_lr", "++method.gaurd=true"), "did you mean guard"),
        (("optimizer=muon",), "skipped: Muon "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_command_line_prints_one_line_and_exits_with_code_2(cli, arguments, message):
    code, out, err = cli(*QUICK, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("scheduler=custom", "scheduler._target_=builtins.id"),
        ("optimizer=adam", "++optimizer.betas=[0.9]"),
    ],
    ids=" ".join,
)
def test_an_error_during_the_run_prints_its_reason_in_the_last_line_and_no_traceback(cli, arguments):
    code, out, err = cli(*QUICK, *arguments)
    assert code in (1, 2)
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("freeze-runner: failed: ")


@pytest.mark.long
def test_a_sweep_has_a_row_for_each_optimizer_and_method_also_for_skipped_runs(cli):
    grid = "optimizer=lbfgs,muon,sparse_adam", "method=requires_grad,zero_lr"
    code, _, err = cli("-m", *QUICK, "hydra.sweep.dir=sweep", "groups=one", *grid)
    assert (code, err) == (0, "")
    rows = read_table(Path("sweep/comparison.csv"))
    outcomes = {(row["optimizer"], row["method"]): (row["status"], row["reason"].split(" ")[0]) for row in rows}
    assert outcomes == {
        ("lbfgs", "requires_grad"): ("finished", ""),
        ("lbfgs", "zero_lr"): ("skipped", "LBFGS"),
        ("muon", "requires_grad"): ("skipped", "Muon"),
        ("muon", "zero_lr"): ("skipped", "Muon"),
        ("sparse_adam", "requires_grad"): ("skipped", "SparseAdam"),
        ("sparse_adam", "zero_lr"): ("skipped", "SparseAdam"),
    }


@pytest.mark.parametrize("method", ["requires_grad", "to_buffer"])
def test_a_note_tells_that_nothing_trains_if_everything_is_frozen(cli, method):
    assert cli(*QUICK, "hydra.run.dir=here", "freeze=all", f"method={method}")[0] == 0
    assert "every parameter is declared frozen: nothing trains" in json.loads(Path("here/run.json").read_text())["notes"]


CUSTOM = """
from runner import FreezingMethod

class NoBatches: pass

class NothingToYield:
    def __iter__(self): return iter(())

class Pictures:
    def __len__(self): return 3
    def __getitem__(self, index): return index, index

def number(model, batch): return 3.0

def logits(model, batch): return model(batch[0])

class NoModel(FreezingMethod):
    def prepare(self, model, selection, undo): pass

class NoGroups(FreezingMethod):
    def groups(self, groups, selection): pass

class OneTensor(FreezingMethod):
    def groups(self, groups, selection): return groups[0]["params"]
"""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data=custom", "data._target_=mine.NoBatches"), "data gives a NoBatches; give an iterable of batches, such as a"),
        (("data=custom", "data._target_=mine.NothingToYield"), "data: there is no batch; give data that yield at least one"),
        (
            ("data=custom", "data._target_=mine.Pictures"),
            "a Pictures, a dataset, where batches are expected; give",
        ),
        (("task=custom", "task._target_=mine.NoBatches"), "task gives a NoBatches; it must give a function (model, batch)"),
        (("task=custom", "task._target_=mine.number"), "the task returned a float; it must return"),
        (("task=custom", "task._target_=mine.logits"), "the task returned a tensor of shape (4, 10); it"),
        (("task.loss=mine.no_loss",), "task.loss._target_: 'mine.no_loss' does not exist; mine has no no_loss"),
        (("task.loss=mse_los",), "did you mean mse_loss?"),
        (
            ("task.loss=mse_loss",),
            "the model returned a tensor of shape (4, 10) for a target int64 of shape (4,)",
        ),
        (("task.call=second",), "task.call is 'second'; give one of auto, first, args, kwargs"),
        (("task.call=kwargs",), "task.call=kwargs takes a mapping; the data gave a batch of 2 parts"),
        (("task.fields={0: images}",), "the model takes forward(x) and was given (images=...): missing a required argument"),
        (("task.target=label",), "task.target names 'label', which the batch does not have; its fields are 0 and 1"),
        (("task=causal_lm",), "task.shift=true needs scores (N, T, classes) and tokens (N, T)"),
        (
            ("task=model_loss",),
            "the model takes forward(x) and was given (a tensor of shape (4, 64), a tensor",
        ),
        (("method._target_=mine.NoModel",), "prepare returned a NoneType; it must return the model to train"),
        (("method._target_=mine.NoGroups",), "groups returned a NoneType; it must return a list of parameter groups"),
        (("method._target_=mine.OneTensor",), "groups returned a list of"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("plan", [False, pytest.param(True, marks=pytest.mark.long)])
def test_what_a_users_class_or_function_returns_wrongly_is_named_in_one_line(cli, overrides, message, plan):
    Path("mine.py").write_text(CUSTOM)
    code, _, err = cli(*QUICK, *overrides, f"plan={plan}")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


SCHEDULES = """
from runner.freezing.schedule import Phase


def begins_late(selection):
    return [Phase(3, selection)]


def ends_late(selection):
    return [Phase(1, selection), Phase(5, selection)]


def returns_none(selection):
    return None
"""


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("begins_late", "must begin at 1"),
        ("ends_late", "1 of 2 phases would begin after the last step, the last one at step 5; the run has 4 steps"),
        ("returns_none", "must return a list"),
    ],
)
def test_an_invalid_custom_schedule_is_refused_in_one_line(cli, schedule, message):
    Path("mine.py").write_text(SCHEDULES)
    code, _, err = cli("model=mlp", "batches=4", "schedule=custom", f"schedule._target_=mine.{schedule}")
    assert (code, message in err, err.count("\n")) == (2, True, 1)


@pytest.mark.parametrize("empty", ["method=glob(qq*)", "seed=range(0,0)"])
def test_a_sweep_without_runs_exits_with_code_2(cli, empty):
    code, _, err = cli("-m", "model=mlp", empty)
    assert (code, err) == (2, "freeze-runner: the sweep has no run: a glob or a range in it is empty\n")


@pytest.mark.parametrize("override", ["optimizer=null", "model.input=[[8]]", "threads=100000"])
def test_values_that_once_caused_a_traceback_are_refused_in_one_line(cli, override):
    code, _, err = cli("model=mlp", override)
    assert (code, err.count("\n")) == (2, 1)


def test_the_error_for_an_option_of_another_method_names_that_method(cli):
    _, _, err = cli("model=mlp", "method.guard=true")
    assert err == "freeze-runner: method.guard: no such key of the chosen method; method=zero_lr has it\n"


def test_a_custom_method_does_not_get_the_options_of_the_method_that_it_replaces(cli):
    Path("mine.py").write_text("from runner import FreezingMethod\nclass Custom(FreezingMethod):\n    pass\n")
    assert cli("model=mlp", "batches=2", "method._target_=mine.Custom")[0] == 0


def test_sparse_adam_trains_a_model_that_has_only_sparse_embeddings(cli):
    Path("mine.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Embedding(4, 3, sparse=True), nn.Embedding(4, 3, sparse=True)\n"
        "    def forward(self, x):\n"
        "        tokens = (x[:, :2] > 0).long()\n"
        "        return self.a(tokens).mean(1) + self.b(tokens).mean(1)\n"
    )
    model = ("model=custom", "model.build._target_=mine.Net", "model.input=[4]", "model.classes=3", "batches=3")
    code, out, _ = cli(*model, "optimizer=sparse_adam", "freeze.patterns=[a]")
    assert (code, "HELD" in out) == (0, True)
    assert cli(*model, "optimizer=sparse_adam", "freeze.patterns=[a]", "plan=true")[0] == 0
