"""`cuda.bindings.runtime` for a process that has the doubles on its path."""

from tests.doubles.cuda_runtime import *  # noqa: F403
