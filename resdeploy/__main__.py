"""Where the program begins: the installed script and `python -m resdeploy`."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """`resdeploy.cli.main`, where Ctrl-C before it has been imported ends the process without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has us ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from resdeploy.cli import main as command_line

    command_line()


if __name__ == "__main__":
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        # `-m` looks for modules in the current folder first: a stranger's numpy.py there would be run.
        del sys.path[0]
    main()
