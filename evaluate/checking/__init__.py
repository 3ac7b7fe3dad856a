"""From a candidate's code and a problem's tests to results: what ran, what it gave, and why it failed."""

from evaluate.checking.check import DEFAULT_LIMITS, run_tests, run_tests_many
from evaluate.checking.result import TestResult

__all__ = ["DEFAULT_LIMITS", "TestResult", "run_tests", "run_tests_many"]
