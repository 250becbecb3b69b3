"""Files on disk: written atomically, hashed, and published with their records; records read from text."""

from resdeploy.disk import disk_errors, make_folder, probe
from resdeploy.store.atomic import (
    CHUNK_BYTES,
    atomic_path,
    companions,
    digest,
    sha256_of,
    size_bytes,
    sweep,
    write_bytes,
    write_json,
)
from resdeploy.store.publishing import UNSIGNED, check_digest, copy_to, derive, load, load_own, publish, sidecar
from resdeploy.store.typed_json import find_profile, fingerprint, parse, parse_json, read, read_profile

__all__ = [
    "CHUNK_BYTES",
    "UNSIGNED",
    "atomic_path",
    "check_digest",
    "companions",
    "copy_to",
    "derive",
    "digest",
    "disk_errors",
    "find_profile",
    "fingerprint",
    "load",
    "load_own",
    "make_folder",
    "parse",
    "parse_json",
    "probe",
    "publish",
    "read",
    "read_profile",
    "sha256_of",
    "sidecar",
    "size_bytes",
    "sweep",
    "write_bytes",
    "write_json",
]
