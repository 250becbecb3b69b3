"""`tensorrt` for a process that has the doubles on its path: the version that DOUBLE_TENSORRT names."""

import os
import sys

from tests.doubles import tensorrt_double

sys.modules[__name__] = tensorrt_double.Double(os.environ["DOUBLE_TENSORRT"]).module
