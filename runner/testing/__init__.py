"""Assertions for people's own test suites: `assert_frozen`, `assert_trains`, and `conforms` for authors of methods."""

from __future__ import annotations

from runner.testing.assertions import assert_frozen as assert_frozen
from runner.testing.assertions import assert_trains as assert_trains
from runner.testing.conformance import conforms as conforms

__all__ = ["assert_frozen", "assert_trains", "conforms"]
