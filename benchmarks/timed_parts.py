"""Run a command of this project in this process, and write to a file how much CPU time each part of it takes.

`python -m benchmarks.timed_parts FILE -c CODE` or `python -m benchmarks.timed_parts FILE -m runner ARGUMENTS...`; what
`benchmarks.where_time_goes` starts. There is no profiler: functions named below are replaced, when their module has been
imported, by ones that read a clock before and after. Time within a part is that of the innermost part alone. Few Python
modules are imported here, because the imports of the command are measured.
"""

from __future__ import annotations

import importlib
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from functools import wraps
from time import process_time
from types import FunctionType, ModuleType
from typing import Any

START, END, REST = "Python's start", "Python's end", "the rest"
TORCH, HYDRA, OURS, OTHERS = (
    "import: torch, torchvision",
    "import: Hydra, OmegaConf",
    "import: this project",
    "import: other libraries",
)
COMPOSE, JOB = "compose and check the config", "Hydra: folder, log, help"
LOOP, FEED = "step: optimizer, and the loop itself", "shared first layers: keys, reading, writing"
TIMED = {  # part -> functions, MODULE:NAME; of a class with its name before
    COMPOSE: (
        "runner.sweep.grid:compose_runs",
        "runner.config.check:check",
        "hydra._internal.config_loader_impl:ConfigLoaderImpl.load_configuration",
    ),
    JOB: ("hydra._internal.utils:_run_hydra", "hydra.core.utils:run_job"),
    "build the model": ("runner.assemble.models:build_model",),
    "data": ("runner.assemble.feeding:open_feed", "runner.training.data.synthetic:Synthetic.draw"),
    "what is frozen, method, optimizer": (
        "runner.assemble.models:declared_selection",
        "runner.assemble.phases:build_plan",
        "runner.assemble.phases:begin_first_phase",
        "runner.assemble.setup:build_method",
    ),
    "shared first layers: trials, fingerprints": (
        "runner.methods.prefix.shared.trials:Trials.of",
        "runner.methods.prefix.shared.trials:Trials.find",
        "runner.methods.prefix.shared.trials:Trials.why_not_shared",
        "runner.methods.prefix.shared.trials:Trials.recording",
    ),
    FEED: ("runner.methods.prefix.shared.feed:SharedPrefix.feed",),
    "forecast of leaks": ("runner.foresight.warnings:foresee_phase", "runner.foresight.warnings:couplings"),
    "step: forward": ("runner.training.tasks.trained:TrainedTask.__call__",),
    "step: backward": ("torch:Tensor.backward",),
    LOOP: ("runner.training.loop:train",),
    "step: hooks and looks of the audit": (
        "runner.proof.auditor:Auditor.declare",
        "runner.proof.auditor:Auditor.watch_for_a_step",
        "runner.proof.auditor:Auditor.on_step_begin",
        "runner.proof.auditor:Auditor.on_step_end",
    ),
    "metering": (
        "runner.assemble.objects:build_meter",
        "runner.cost.meter:CountingMeter.on_model_built",
        "runner.cost.meter:CountingMeter.on_phase_prepared",
        "runner.cost.meter:CountingMeter.wrap_task",
        "runner.cost.meter:CountingMeter.on_batch",
        "runner.cost.meter:CountingMeter.on_phase_end",
        "runner.cost.meter:CountingMeter.read_costs",
    ),
    "copies, rows and norms": (
        "runner.proof.changes:snapshot",
        "runner.proof.changes:add_new_tensors",
        "runner.proof.changes:trained_digest",
        "runner.proof.auditor:Auditor.finish",
    ),
    "files of a run": (
        "runner.runs.job:initial_record",
        "runner.runs.write:write_tables",
        "runner.runs.folder:write_record",
    ),
    "tables and page": (
        "runner.runs.console:print_summary",
        "runner.report.files:write_run_page",
        "runner.report.files:write_sweep_files",
        "runner.report.terminal:print_report",
    ),
    REST: ("runner.runs.job:execute_run", "runner.sweep.drive:sweep", "runner.sweep.worker:Worker.__call__"),
}
PARTS = (START, TORCH, HYDRA, OURS, OTHERS, *TIMED, END)  # the rows of the table
OPEN = (JOB, LOOP, FEED, OURS, REST)  # parts within which other parts are measured; within the others only imports are
LIBRARIES = (TORCH, HYDRA, OTHERS)  # what such an import imports counts to it
MARKED = ("runner.sweep.worker:Worker.__call__", "runner.sweep.grid:compose_runs", "runner.sweep.end:write_sweep_results")
IS_GENERATOR_FUNCTION = 0x20  # as `inspect.CO_GENERATOR`
PART_OF_IMPORT = {
    "runner": OURS,
    "hydra": HYDRA,
    "hydra_plugins": HYDRA,
    "omegaconf": HYDRA,
    "antlr4": HYDRA,
} | dict.fromkeys(("torch", "torchvision", "functorch"), TORCH)


def cpu_seconds() -> float:
    """The CPU seconds of this process, user and system, with those of its children that have ended, such as git."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return process_time() + children.ru_utime + children.ru_stime


class Clock:
    """Adds up the seconds of parts, each without those of the parts within it.

    Attributes:
        now: returns the present time in seconds.
        seconds: {part: seconds so far}.
        marks: (name, `seconds` at that moment), in order.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.seconds: dict[str, float] = {}
        self.marks: list[tuple[str, dict[str, float]]] = []
        self._within = [REST]
        self._last = now()
        self._thread = threading.get_ident()

    def is_counted(self, part: str, *, is_import: bool = False) -> bool:
        """Whether the time of `part` is to be counted apart where the process is now.

        It is not while a profile function is set: the runner sets one to find out whether a model reads a clock.
        """
        if threading.get_ident() != self._thread or sys.getprofile() is not None or self._within[-1] == part:
            return False
        return self._within[-1] not in LIBRARIES if is_import else self._within[-1] in OPEN

    def begin(self, part: str) -> None:
        """Count the time from now on to `part`, until `end` is called."""
        self._count()
        self._within.append(part)

    def end(self) -> None:
        """Count the time from now on to the part within which the present one began."""
        self._count()
        self._within.pop()

    def mark(self, name: str) -> None:
        """Keep the seconds so far under a name."""
        self._count()
        self.marks.append((name, dict(self.seconds)))

    def _count(self) -> None:
        now, part = self.now(), self._within[-1]
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now


def timed(function: FunctionType, part: str, clock: Clock, mark: str = "") -> Callable[..., Any]:
    """`function`, with its time counted to `part`, and that of each of its steps if it is a generator function.

    `mark`: if given, the seconds so far are kept under this name when it is called and when it returns.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not clock.is_counted(part):
            return function(*args, **kwargs)
        clock.begin(part)
        try:
            return function(*args, **kwargs)
        finally:
            clock.end()

    @wraps(function)
    def call_and_mark(*args: Any, **kwargs: Any) -> Any:
        clock.mark(mark)
        try:
            return call(*args, **kwargs)
        finally:
            clock.mark(f"after {mark}")

    @wraps(function)
    def iterate(*args: Any, **kwargs: Any) -> Iterator[Any]:
        iterator = function(*args, **kwargs)
        step = timed(lambda: next(iterator, iterator), part, clock)  # type: ignore[arg-type]
        try:
            while (value := step()) is not iterator:
                yield value
        finally:
            iterator.close()

    if function.__code__.co_flags & IS_GENERATOR_FUNCTION:
        return iterate
    return call_and_mark if mark else call


def replace_functions(module: ModuleType, clock: Clock) -> None:
    """Replace the functions of TIMED and MARKED that are in a module. Raises LookupError if one is gone."""
    for part, names in {**TIMED, None: MARKED}.items():
        for name in names:
            if name.partition(":")[0] == module.__name__ and (part or not any(name in each for each in TIMED.values())):
                owner, attribute = find(name, module)
                found = vars(owner)[attribute]
                bare = found.__func__ if isinstance(found, classmethod) else found
                new = timed(bare, part or REST, clock, name if name in MARKED else "")
                place = bare.__code__.co_filename  # a model with functions of the user in torch would not be shared
                new.__code__ = new.__code__.replace(co_filename=place)  # type: ignore[attr-defined]
                setattr(owner, attribute, classmethod(new) if isinstance(found, classmethod) else new)


def find(name: str, module: ModuleType) -> tuple[Any, str]:
    """What has the function `name` (MODULE:NAME) as an attribute, and the attribute. Raises LookupError if it is gone."""
    *classes, attribute = name.partition(":")[2].split(".")
    owner: Any = module
    for each in classes:
        owner = getattr(owner, each, None)
    if owner is None or attribute not in vars(owner):
        raise LookupError(f"{name} is gone; say in benchmarks/timed_parts.py which function does its work now")
    return owner, attribute


def watch_imports(clock: Clock) -> None:
    """Count imports to the parts of PART_OF_IMPORT, and replace the functions of each module once it has been imported."""
    bootstrap: Any = importlib._bootstrap  # type: ignore[attr-defined]
    find_and_load = bootstrap._find_and_load
    modules = {name.partition(":")[0] for names in (*TIMED.values(), MARKED) for name in names}

    def load(name: str, import_: Any) -> Any:
        part = PART_OF_IMPORT.get(name.partition(".")[0], OTHERS)
        is_new, is_counted = name not in sys.modules, clock.is_counted(part, is_import=True)
        if is_counted:
            clock.begin(part)
        try:
            module = find_and_load(name, import_)
        finally:
            if is_counted:
                clock.end()
        if is_new and name in modules:
            replace_functions(sys.modules[name], clock)
        return module

    bootstrap._find_and_load = load


def main() -> None:
    file, flag, code, *arguments = sys.argv[1:]
    started = cpu_seconds()
    clock = Clock(cpu_seconds)
    watch_imports(clock)
    try:
        if flag == "-c":
            exec(code, {"__name__": "__main__"})
        else:
            runpy = importlib.import_module("runpy")
            sys.argv = [code, *arguments]
            runpy.run_module(code, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code:
            raise
    clock.mark("end")
    with open(file, "w") as out:
        import json

        json.dump({"seconds": {START: started, **clock.seconds}, "marks": clock.marks}, out)


if __name__ == "__main__":
    main()
