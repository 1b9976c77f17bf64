"""A digest of all that an object's behaviour depends on: values, bits of tensors, and the code of the user's classes."""

from __future__ import annotations

import dis
import enum
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.util import resolve_name
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from runner.errors import is_installed
from runner.sharing.bits import digest_of_bits
from runner.tensors import has_values

HOOKS = ("hooks", "hooks_with_kwargs", "hooks_always_called")  # the ends of the names under which a module has its hooks
MOST_NESTED = 5  # Python modules in Python modules
NOT_BEHAVIOUR = (  # names in a class
    *("__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__slots__", "_abc_impl"),
    *("__dataclass_fields__", "__dataclass_params__", "__match_args__"),
)
PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), range, slice)
USED: tuple[Any, ...] = (torch, torch.nn.functional, Tensor)  # by modules of libraries, without naming them
TORCH_PLAIN = (torch.dtype, torch.device, torch.layout, torch.memory_format)


class NotComparableError(Exception):
    """An object has a part of which it cannot be told whether it is the same as another."""


class Fingerprint:
    """Takes in objects, and gives a digest that is other if they behave differently, as far as can be seen from them.

    Of a tensor, its bits, type, dtype, shape, strides, device and flag enter. Of a module and any other object, its class
    and attributes. Of a function and a class of the user, the code, and the values of globals that the code names; of one
    from an installed library, its name and the library's version. Two equal objects may have different digests.

    `outline`: returns True for a module of which only the class is to enter, and for a tensor without whose bits it is the
    same.
    """

    def __init__(self, outline: Callable[[Any], bool] = lambda part: False) -> None:
        self.outline = outline
        self._digest = hashlib.sha256()
        self._numbers: dict[int, int] = {}  # id of an object that was taken in -> its number
        self._kept_alive: list[Any] = []
        self._open: set[int] = set()  # ids of lists and dicts that are being taken in
        self._searched: set[int] = set()  # ids of classes and Python modules of libraries, for functions of the user

    def hexdigest(self) -> str:
        """Return the digest of what was taken in so far, as 32 hex digits."""
        return self._digest.hexdigest()[:32]

    def add(self, value: Any) -> Fingerprint:
        """Take in a value, and return this object. Raises NotComparableError for what cannot be compared."""
        try:
            return self._add(value)
        except (RecursionError, ValueError, TypeError, RuntimeError, AttributeError, KeyError, ImportError) as error:
            raise NotComparableError(f"an object of type {type(value).__name__}: {error}") from error

    def _add(self, value: Any) -> Fingerprint:
        """Take in a value, and return this object. What the user's classes raise is passed on."""
        if isinstance(value, PLAIN + TORCH_PLAIN) and type(value).__module__ in ("builtins", "torch"):
            self._text(type(value).__name__, repr(value))
        elif isinstance(value, (list, dict)) and id(value) in self._open:
            raise NotComparableError("a list or dict that contains itself")
        elif isinstance(value, (list, tuple)) and type(value) in (list, tuple, torch.Size):
            self._text(type(value).__name__, str(len(value)))
            self._open.add(id(value))
            for each in value:
                self.add(each)
            self._open.discard(id(value))
        elif type(value) is dict:
            self._text("dict", str(len(value)))
            self._open.add(id(value))
            for key, each in value.items():
                self.add(key).add(each)
            self._open.discard(id(value))
        elif isinstance(value, (set, frozenset)):
            self._text("set", *sorted(Fingerprint(self.outline).add(each).hexdigest() for each in value))
        elif id(value) in self._numbers:
            self._text("again", str(self._numbers[id(value)]))
        else:
            self._numbers[id(value)] = len(self._numbers)
            self._kept_alive.append(value)  # so that no other object gets its id
            self._add_object(value)
        return self

    def _text(self, *texts: str) -> None:
        """Take in texts, with their lengths, so that no others join to the same."""
        for text in texts:
            data = text.encode("utf-8", "surrogatepass")
            self._digest.update(b"%d:" % len(data) + data)

    def _add_object(self, value: Any) -> None:
        """Take in an object that is met for the first time."""
        if isinstance(value, Tensor):
            self._add_tensor(value)
        elif isinstance(value, numpy.ndarray) and not value.dtype.hasobject:
            self._text("array", str(value.dtype), str(value.shape), str(value.strides))
            self._digest.update(value.tobytes())
        elif isinstance(value, nn.Module):
            self._text("module")
            self.add(type(value))
            if not self.outline(value):
                self._add_attributes(value)
        elif isinstance(value, (PurePath, numpy.generic, numpy.dtype)):
            self._text(type(value).__name__, repr(value))
        elif isinstance(value, enum.Enum):
            self.add(type(value))._text(value.name)
        elif isinstance(value, ModuleType):
            self._text("python module", value.__name__, _version_of(value.__name__))
            if _is_of_library(value.__name__):
                self._add_patches(value)
        elif isinstance(value, type):
            self._add_class(value)
        elif isinstance(value, FunctionType):
            self._add_function(value)
        elif isinstance(value, CodeType):
            self._add_code(value)
        elif isinstance(value, MethodType):
            self.add(value.__func__).add(value.__self__)
        elif isinstance(value, BuiltinFunctionType) or type(value).__name__ in ("wrapper_descriptor", "method_descriptor"):
            self._text("builtin", str(getattr(value, "__module__", "")), value.__qualname__)
        elif isinstance(value, torch.Generator):
            self._text("generator")
            self.add(value.get_state())
        elif isinstance(value, (staticmethod, classmethod)):
            self._text(type(value).__name__)
            self.add(value.__func__)
        elif isinstance(value, property):
            self.add([value.fget, value.fset])
        else:
            self._add_by_reduction(value)

    def _add_tensor(self, tensor: Tensor) -> None:
        """Take in a tensor. Raises NotComparableError unless it is strided."""
        if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized:
            raise NotComparableError(f"a tensor that is not dense ({type(tensor).__name__})")
        self._text("tensor", f"{type(tensor).__module__}.{type(tensor).__qualname__}", str(tensor.dtype), str(tensor.device))
        self._text(str(tuple(tensor.shape)), str(tensor.stride()), str(tensor.requires_grad))
        if not self.outline(tensor) and has_values(tensor) and tensor.numel():
            self._digest.update(digest_of_bits(tensor))

    def _add_attributes(self, module: nn.Module) -> None:
        """Take in the attributes of a module; its hooks by their order, because each gets a number that no other has."""
        attributes = vars(module)
        hooks = {name: value for name, value in attributes.items() if name.endswith(HOOKS) and isinstance(value, Mapping)}
        order = {
            number: position for position, number in enumerate(sorted({key for each in hooks.values() for key in each}))
        }
        for name, value in attributes.items():
            if name in hooks:
                value = {order[number]: hook for number, hook in value.items()}
            try:
                self.add(name).add(value)
            except NotComparableError as error:
                raise NotComparableError(f"{name} of a {type(module).__name__}: {error}") from error

    def _add_class(self, value: type) -> None:
        """Take in a class: its name; one of the user also by what is defined in it and in the classes that it extends.

        Of a library's, what the user has put into it, the classes that it extends, or its Python module.
        """
        self._text("class", value.__module__, value.__qualname__)
        if _is_of_library(value.__module__):
            self._text(_version_of(value.__module__))
            for owner in (*USED, *value.__mro__, sys.modules[value.__module__]):
                self._add_patches(owner)
            return
        for base in value.__mro__[1:]:
            self.add(base)
        for name, member in vars(value).items():
            if name not in NOT_BEHAVIOUR:
                self.add(name).add(member)

    def _add_function(self, function: FunctionType) -> None:
        """Take in a function: its code, defaults and closure, and the globals that it names if it is the user's."""
        self._text("function", str(function.__module__), function.__qualname__)
        self.add(function.__code__).add(function.__defaults__).add(function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:  # it is empty
                self._text("empty cell")
        if _is_of_library(str(function.__module__)):
            self._text(_version_of(str(function.__module__)))
            return
        names = _names_in(function.__code__)
        self._add_named(function.__globals__, names)
        for name in _imported_in(function.__code__, str(function.__globals__.get("__package__") or "")):
            if name in sys.modules and not _is_of_library(name):
                self._add_named(vars(sys.modules[name]), names)
            elif name not in sys.modules and name.partition(".")[0] not in sys.stdlib_module_names:
                raise NotComparableError(f"{function.__qualname__}, which imports {name} when it is called")

    def _add_patches(self, owner: type | ModuleType) -> None:
        """Take in those functions of a library's class or Python module that are the user's."""
        if id(owner) in self._searched:
            return
        self._searched.add(id(owner))
        for name, value in list(vars(owner).items()):
            function = getattr(value, "__func__", getattr(value, "func", value))  # of a static method or a partial
            if isinstance(function, FunctionType) and not _is_library_code(function):
                self.add(name).add(value)

    def _add_named(self, values: Mapping[str, Any], names: list[str], depth: int = 0) -> None:
        """Take in those of the values that code names; of a Python module of the user, those of its attributes."""
        for name in names:
            if name not in values:
                continue
            self.add(name).add(value := values[name])
            if isinstance(value, ModuleType) and not _is_of_library(value.__name__) and depth < MOST_NESTED:
                self._add_named(vars(value), names, depth + 1)

    def _add_code(self, code: CodeType) -> None:
        """Take in what a function does: its instructions, constants and names."""
        arguments = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
        self._text("code", code.co_name, repr((code.co_names, code.co_varnames, code.co_freevars, arguments)))
        self._digest.update(code.co_code + getattr(code, "co_exceptiontable", b""))  # which Python 3.10 has not
        self.add(code.co_consts)

    def _add_by_reduction(self, value: Any) -> None:
        """Take in any other object, by what `pickle` would store of it."""
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:
            raise NotComparableError(f"it has an object of type {type(value).__name__}") from error
        if isinstance(reduced, str):  # the name of a global
            module = str(getattr(value, "__module__", type(value).__module__))
            self._text("global", module, reduced, _version_of(module))
            if not _is_of_library(module):
                if not hasattr(value, "__wrapped__"):
                    raise NotComparableError(f"{reduced}, an object of type {type(value).__name__}")
                self.add(value.__wrapped__)
            return
        self._text("object")
        self.add(type(value))
        if not _is_of_library(type(value).__module__) and hasattr(value, "__dict__"):
            self.add(vars(value))  # of which its own `__getstate__` may leave out something
        for part in reduced:
            self.add(part if isinstance(part, (tuple, dict, type(None))) or callable(part) else _listed(part))


def _listed(part: Any) -> Any:
    """Return the items of an iterator as a list, and any other part of a reduction as it is."""
    return list(part) if isinstance(part, Iterator) else part


def _names_in(code: CodeType) -> list[str]:
    """Return the names that a function uses, with those of the functions that are defined in it."""
    inner = [name for each in code.co_consts if isinstance(each, CodeType) for name in _names_in(each)]
    return list(dict.fromkeys([*code.co_names, *inner]))


def _imported_in(code: CodeType, package: str) -> list[str]:
    """Return the full names of the Python modules that a function of a package imports when it is called."""
    found: list[str] = []
    level = 0
    for each in dis.get_instructions(code):
        if each.opname == "IMPORT_NAME":
            found.append(resolve_name("." * level + each.argval, package) if level else each.argval)
        elif each.opname in ("LOAD_CONST", "LOAD_SMALL_INT") and isinstance(each.argval, int):
            level = each.argval
    inner = [name for each in code.co_consts if isinstance(each, CodeType) for name in _imported_in(each, package)]
    return list(dict.fromkeys([*found, *inner]))


_is_installed = cache(is_installed)


def _is_library_code(function: FunctionType) -> bool:
    """Return whether a function is of this project, of Python, or of an installed library, by the file of its code."""
    file = function.__code__.co_filename
    return _is_of_library(str(function.__module__)) if file.startswith("<") else _is_installed(file)


def _is_of_library(module: str) -> bool:
    """Return whether a Python module, by its name, is of this project, of Python, or of an installed library."""
    loaded = sys.modules.get(module)
    file = getattr(loaded, "__file__", None)
    return is_installed(file) if file else loaded is not None and module != "__main__"


def _version_of(module: str) -> str:
    """Return the version of the library that a Python module belongs to; "" if it has none."""
    return str(getattr(sys.modules.get(module.partition(".")[0]), "__version__", ""))
