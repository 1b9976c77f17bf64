"""Tensors: those of a model by name, their bits, and nested values that hold some."""

from runner.tensors.bits import (
    as_integers,
    copy_of,
    element_bits,
    flattened,
    has_arithmetic,
    has_values,
    memory_overlaps,
    quantiser_of,
    same_bits,
    same_bits_flat,
)
from runner.tensors.entries import (
    TensorEntry,
    is_compiled,
    names_and_tensors,
    refuse_unless_dense,
    refuse_unreadable,
    tensor_entries,
    tensor_resolver,
)
from runner.tensors.nested import leaves_in, map_leaves, map_tensors, tensors_in

__all__ = [
    "TensorEntry",
    "as_integers",
    "copy_of",
    "element_bits",
    "flattened",
    "has_arithmetic",
    "has_values",
    "is_compiled",
    "leaves_in",
    "map_leaves",
    "map_tensors",
    "memory_overlaps",
    "names_and_tensors",
    "quantiser_of",
    "refuse_unless_dense",
    "refuse_unreadable",
    "same_bits",
    "same_bits_flat",
    "tensor_entries",
    "tensor_resolver",
    "tensors_in",
]
