"""`resdeploy doctor`: what this machine can run, and how to get what is missing."""

from resdeploy.cli import console, options


def doctor(fmt: options.Format = "table", output: options.Output = None, verbose: options.Verbose = 0) -> None:
    """Say what this machine can run, what is missing, and the command that installs it.

    Example: resdeploy doctor --format json
    """
    from resdeploy.backends import choose, tensorrt
    from resdeploy.measure import environment
    from resdeploy.report import documents

    console.emit(documents.doctor(choose.survey(), environment.capture(), tensorrt.capabilities()), fmt, output)
