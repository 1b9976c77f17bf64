"""Give the steps of a run the outputs of frozen first layers that any run of the sweep has computed for their samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import count
from textwrap import shorten
from typing import Any

from torch import Tensor, nn

from runner.contract import SharedRecord
from runner.errors import SkippedError
from runner.freezing.selection import Selection
from runner.methods.base import Example, PhaseContext
from runner.methods.prefix.bypass import Bypass
from runner.methods.prefix.check import Prefix
from runner.methods.prefix.samples import why_no_samples
from runner.methods.prefix.shared.purity import prefix_tensors
from runner.methods.prefix.shared.store import Store
from runner.methods.prefix.shared.trials import Trials
from runner.methods.prefix.unchanged import UnchangedTensors
from runner.seeding import random_state
from runner.sharing.fingerprint import Fingerprint, NotComparableError
from runner.sharing.folder import Sharing
from runner.sharing.rows import DamagedError, FullError
from runner.tensors import is_compiled, tensors_in

NOTHING_FROZEN = "nothing is frozen"


class NotAsAloneError(Exception):
    """Steps have used stored outputs, and the run is not, or may not be, what it would be by itself.

    `why`: what shows it. `record`: the entry `shared` of `run.json` for the run that is then made without stored outputs.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        reason = f"{why}, so the run was made anew without stored outputs"
        self.record: SharedRecord = {"layer": "", "batches_read": 0, "batches_stored": 0, "reason": reason}


class SharedPrefix:
    """Lets the steps of a run use outputs of frozen first layers that a run of the sweep has stored, and store the others.

    Outputs are used only for a batch with the same bytes and strides, by the same frozen layers with the same flags and
    modes, under the same settings. The trained weights then have the same bits as without it, unless the layers depend on
    something that neither the trials nor the fingerprint of the model can see, such as a counter that another library keeps.

    `sharing`: what the run shares with others. `reason`: why nothing can be shared.
    """

    def __init__(self, sharing: Sharing, *, reason: str = "") -> None:
        self.sharing = sharing
        self.record: SharedRecord = {"layer": "", "batches_read": 0, "batches_stored": 0, "reason": reason}
        self.bypass: Bypass | None = None  # None while nothing is shared
        self.prefix = Prefix("", [])
        self.trials: Trials
        self.weights = UnchangedTensors([])
        self.stores: dict[str, Store] = {}
        self.may_store, self.has_skipped = True, False
        self.attributes = ""
        self.read = Counter[tuple[str, tuple[str, ...]]]()  # batches by the prefix that did not run

    @property
    def is_tried(self) -> bool:
        """Whether steps may use stored outputs, if trials show that they can."""
        return self.sharing.folder is not None

    @contextmanager
    def blamed_for_errors(self) -> Iterator[None]:
        """In the block, turn an error after layers were skipped into a NotAsAloneError: they may be what raised it.

        A step whose layers before the stored output go another way than in the trial meets placeholders, for example.
        """
        try:
            yield
        except (NotAsAloneError, TimeoutError):  # TimeoutError: of the run
            raise
        except Exception as error:
            if self.has_skipped:
                raise NotAsAloneError(f"a step failed where layers were skipped ({worded(error)})") from error
            raise

    def feed(
        self,
        batches: Iterable[Any],
        context: PhaseContext,
        selection: Selection,
        *,
        example: Example | None,
        undo: ExitStack,
    ) -> Iterator[Any]:
        """Yield the batches; while each is trained on, the model skips the frozen first layers if their outputs are stored.

        `selection`: what is frozen in this phase. Closing `undo` lets all layers run again. Raises NotAsAloneError if
        the frozen layers changed after their stored outputs were used.
        """
        if self.is_tried:
            try:
                self._stop(self._begin(context.model, selection, example, undo))
            except TimeoutError:  # of the run, which may end any line
                raise
            except Exception as error:  # of the user's classes, on a copy of the model
                self._stop(f"the frozen layers cannot be tried: {worded(error)}")
        for batch in batches:
            yield from self._fed(batch, context)
        if self.bypass is not None:
            self._refuse_change(self.weights.have_the_same_bits() and self.trials.attributes() == self.attributes)
        self.bypass, self.stores, self.weights = None, {}, UnchangedTensors([])

    def record_with(self, flops_by_module: Mapping[str, int]) -> SharedRecord:
        """Return the entry `shared` of `run.json`. `flops_by_module`: {module name: FLOPs of its forward pass}."""
        saved = 0
        for (boundary, modules), batches in self.read.items():
            outermost = [name for name in modules if boundary and not name.startswith(f"{boundary}.")]
            saved += batches * sum(flops_by_module.get(name, 0) for name in (*outermost, boundary))
        has_shared, reason = bool(self.record["layer"]), self.record["reason"]
        return {
            **self.record,
            "reason": "" if has_shared and reason == NOTHING_FROZEN else reason,  # it was so in other phases alone
            "flops_not_run": saved if flops_by_module and has_shared else None,
        }

    def _begin(self, model: nn.Module, selection: Selection, example: Example | None, undo: ExitStack) -> str:
        """Find out which outputs can be shared in this phase; return why none can be, or ""."""
        if not selection.parameters:
            return NOTHING_FROZEN
        if any(each.requires_grad for name, each in model.named_parameters() if name in selection.parameters):
            return "frozen parameters require gradients, so every layer must run"
        if is_compiled(model):
            return "a part of the model is compiled"
        if example is None or why_no_samples(example.batch):
            return "a batch cannot be divided into samples"
        self.trials = Trials.of(self.sharing, model, selection, example.task)
        if self.trials.reason:
            return self.trials.reason
        found = self.trials.find(example)
        if found.modules is None:
            return found.reason
        self.prefix = Prefix(found.boundary, found.modules)
        if reason := self.trials.why_not_shared(self.prefix, example):
            return reason
        layers = [name for name in self.record["layer"].split(", ") if name]
        self.record["layer"] = ", ".join(dict.fromkeys([*layers, found.boundary or "the model"]))
        self.record["reason"] = self.record["reason"] or found.reason
        self.attributes = self.trials.attributes()
        self.weights = UnchangedTensors(prefix_tensors(model, found.boundary, found.modules))
        self.bypass = Bypass(model, found.boundary, found.modules, beneath=True)
        undo.callback(self.bypass.undo)
        return ""

    def _stop(self, reason: str) -> None:
        """Share nothing more in this phase, for a reason; do nothing for the reason ""."""
        if reason:
            is_first = self.record["reason"] in ("", NOTHING_FROZEN)
            self.record["reason"], self.bypass = reason if is_first else self.record["reason"], None

    def _refuse_change(self, is_unchanged: bool) -> None:
        """If the frozen layers changed: raise NotAsAloneError if stored outputs were used, otherwise stop."""
        if not is_unchanged:
            if self.record["batches_read"]:
                raise NotAsAloneError("frozen layers changed in the run")
            self._stop("the frozen layers changed during the run")

    def _fed(self, batch: Any, context: PhaseContext) -> Iterator[Any]:
        """Yield one batch, which is trained on with the stored outputs or without them."""
        store = self._store(batch, context) if self.bypass is not None else None
        keys = store.keys(batch) if store else []
        load = self._loader(store, keys, batch) if store else None
        if self.bypass is not None:
            self._refuse_change(self.weights.show_no_change() if load else self.weights.have_the_same_bits())
        if self.bypass is None or store is None:
            yield batch
        elif load:
            self.has_skipped = True
            with self.bypass.replay(store.recording, load):
                yield batch
        else:
            before = random_state()
            with self.bypass.record(lambda name, output: self._save(store, keys, before, name=name, output=output)):
                yield batch

    def _store(self, batch: Any, context: PhaseContext) -> Store | None:
        """Return the store for batches of this form; None, for the rest of the phase, if their outputs cannot be shared."""
        if why_no_samples(batch):
            self._stop("a batch cannot be divided into samples")
            return None
        shared = self.trials.shared
        try:
            form = Fingerprint(lambda part: isinstance(part, Tensor)).add(batch).hexdigest()  # of all but the tensors' bits
        except NotComparableError as error:
            self._stop(f"it cannot be told whether another run has the same batch: {error}")
            return None
        if form not in self.stores and shared is not None:
            try:
                recording, _ = self.trials.recording(self.prefix, Example(context.task, batch), {})
            except TimeoutError:  # of the run, which may end any line
                raise
            except Exception as error:  # of the user's classes, on a copy of the model
                self._stop(worded(error))
                return None
            self.stores[form] = Store.of(shared, (self.trials.state, repr(self.prefix), form), recording)
        return self.stores[form]

    def _loader(self, store: Store, keys: list[bytes], batch: Any) -> Callable[[], Tensor] | None:
        """Return a function that returns the stored outputs of samples; None if one is missing or cannot be read.

        A method may have outputs of its own. So a batch counts as read when the function is first called.
        """
        try:
            if not store.rows.has(keys):
                return None
            load = store.load(keys, batch)
        except TimeoutError:  # of the run, which may end any line
            raise
        except (DamagedError, OSError) as error:
            self.record["reason"] = f"the file of outputs is damaged ({error}): what was in it is computed again"
            return None
        calls = count()

        def counted() -> Tensor:
            if next(calls) == 0:
                self.record["batches_read"] += 1
                self.read[self.prefix.boundary, tuple(self.prefix.modules)] += 1
            return load()

        return counted

    def _save(self, store: Store, keys: list[bytes], before: bytes, *, name: str, output: Any) -> None:
        """Store the output of the last frozen module; from the first error on, store nothing more.

        `before`: the random state when the step began; if numbers were drawn since, the output is not stored.
        """
        tensors = tensors_in(output) if name == self.prefix.boundary and self.may_store else []
        if [(each.shape, each.dtype) for each in tensors] != [store.form] or store.rows.has(keys):
            return
        if random_state() != before:
            self.may_store = False
            self.record["reason"] = self.record["reason"] or "random numbers are drawn before the end of the frozen layers"
            return
        try:
            store.save(keys, tensors[0].detach())
            self.record["batches_stored"] += 1
        except TimeoutError:  # of the run, which may end any line
            raise
        except (FullError, OSError, NotImplementedError) as error:
            self.may_store = False
            self.record["reason"] = f"not all outputs are stored: {error}"


def worded(error: Exception) -> str:
    """Return the message of an error in one line, with its type unless it says why frozen layers cannot be skipped."""
    message = shorten(str(error), 120, placeholder="...")
    return message if isinstance(error, SkippedError) else f"{type(error).__name__}: {message}"
