"""Every way resdeploy can fail, with its code and exit status. This list is the authority.

    ResdeployError                  never raised itself
    ├── UsageError           2      the command line asks for something that cannot be done
    │   ├── UnknownName      2      a model, backend, data set or option value nobody knows
    │   ├── MissingInput     2      a file or folder that is not there, or holds nothing usable
    │   └── ProfileError     2      a TOML profile with problems (all of them reported at once)
    ├── UnsafeInput          4      a file that must not, or cannot safely, be read
    │   ├── PickleRefused    4      a checkpoint that wants to run code
    │   ├── FactoryRefused   4      a file that names code to import for its network
    │   ├── MalformedInput   4      truncated, corrupt, or of another format than it claims
    │   └── WeightsMismatch  4      a checkpoint that does not fit the model
    ├── IntegrityError       5      a hash or signature that does not match
    ├── EnvironmentFailure   6      the machine cannot do it
    │   ├── BackendMissing   6      a backend is not installed, or has no device
    │   ├── PackageMissing   6      an optional package is not installed
    │   ├── NotWritable      6      a folder that cannot be written
    │   ├── DiskFull         6      no space left
    │   ├── Locked           6      another process holds what this one waits for
    │   └── OutOfMemory      6      a child was killed for its memory
    ├── BackendCrash         7      a backend's process died, hung or raised where it should not
    ├── OutputLost           1      a low-precision file whose output has nothing to do with its source's
    └── NothingRemoved       8      no residual block that `prune` may drop within the budget

Success is 0; a gate or audit that failed is 1 and an inconclusive one 3 (verdicts are results, not
errors, but for the one by which a file is not written); SIGINT is 130, SIGTERM 143 and SIGHUP 129.
Only `resdeploy.cli` turns these into exits.
"""

from __future__ import annotations


class ResdeployError(Exception):
    """Base of all failures a user can meet.

    Args:
        what: what happened, one sentence without a full stop.
        cause: the likely cause, one sentence, or "".
        fix: the next command or step, one sentence.
        code: replaces the class's code where a finer one helps (`E-...`).
    """

    code = "E-INTERNAL"
    exit_status = 7

    def __init__(self, what: str, *, cause: str = "", fix: str = "", code: str | None = None) -> None:
        super().__init__(what)
        self.what, self.cause, self.fix = what, cause, fix
        if code is not None:
            self.code = code

    @property
    def paragraph(self) -> str:
        """What happened, the likely cause and the next step, in sentences; the code is not among them."""
        parts = [part for part in (self.what, self.cause, self.fix) if part]
        return " ".join(part if part.endswith("?") else part.rstrip(". ") + "." for part in parts)

    def __str__(self) -> str:
        return f"error[{self.code}]: {self.paragraph}"


class UsageError(ResdeployError):
    code, exit_status = "E-USAGE", 2


class UnknownName(UsageError):
    code = "E-UNKNOWN-NAME"


class MissingInput(UsageError):
    code = "E-MISSING-INPUT"


class ProfileError(UsageError):
    code = "E-PROFILE"


class UnsafeInput(ResdeployError):
    code, exit_status = "E-UNSAFE-INPUT", 4


class PickleRefused(UnsafeInput):
    code = "E-PICKLE"


class FactoryRefused(UnsafeInput):
    code = "E-FACTORY"


class MalformedInput(UnsafeInput):
    code = "E-MALFORMED"


class WeightsMismatch(UnsafeInput):
    code = "E-WEIGHTS-MISMATCH"


class IntegrityError(ResdeployError):
    code, exit_status = "E-INTEGRITY", 5


class EnvironmentFailure(ResdeployError):
    code, exit_status = "E-ENVIRONMENT", 6


class BackendMissing(EnvironmentFailure):
    code = "E-BACKEND-MISSING"


class PackageMissing(EnvironmentFailure):
    code = "E-MISSING-PACKAGE"


class NotWritable(EnvironmentFailure):
    code = "E-NOT-WRITABLE"


class DiskFull(EnvironmentFailure):
    code = "E-DISK-FULL"


class Locked(EnvironmentFailure):
    code = "E-LOCKED"


class OutOfMemory(EnvironmentFailure):
    code = "E-MEMORY"


class BackendCrash(ResdeployError):
    code, exit_status = "E-BACKEND-CRASH", 7


class OutputLost(ResdeployError):
    code, exit_status = "E-OUTPUT-LOST", 1


class NothingRemoved(ResdeployError):
    code, exit_status = "E-NOTHING-REMOVED", 8


def revive(code: str, exit_status: int, what: str) -> ResdeployError:
    """The error that was written down with this code: of the class whose code it is, else of its exit status."""
    kinds = list(ResdeployError.__subclasses__())
    for kind in kinds:
        kinds += kind.__subclasses__()
    of_status = [kind for kind in kinds if kind.exit_status == exit_status] or [BackendCrash]
    return next((kind for kind in of_status if kind.code == code), of_status[0])(what, code=code)


def refuse(*problems: tuple[object, str, str], kind: type[UsageError] = UsageError, subject: str = "") -> None:
    """Refuses options that contradict each other, or that would be ignored: all of them at once, before any work.

    Args:
        problems: whether each is one, what is wrong, and how to mend it.
        kind: the class of the error.
        subject: what all are problems of, such as `profile p: `.

    Raises:
        UsageError: of this kind, with every problem and how to mend it.
    """
    found = dict.fromkeys((what, fix) for wrong, what, fix in problems if wrong)
    fixes = dict.fromkeys(fix for _, fix in found)
    if len(fixes) == 1:
        raise kind(subject + "; ".join(what for what, _ in found), fix=next(iter(fixes)))
    if found:
        raise kind(
            subject + " ".join(f"({k}) {kind(what, fix=fix).paragraph}" for k, (what, fix) in enumerate(found, 1))
        )
