"""`tensorrt` for a process that has the doubles on its path: the version that DOUBLE_TENSORRT names."""

import os
import sys

from tests.doubles import tensorrt_double

_execute = os.environ.get("DOUBLE_EXECUTE") != "no"
_module = tensorrt_double.Double(os.environ["DOUBLE_TENSORRT"], execute=_execute).module
_module.__spec__ = __spec__
sys.modules[__name__] = _module
