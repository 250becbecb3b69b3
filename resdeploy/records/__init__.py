"""The nouns: frozen records that verbs turn into other frozen records.

Standard library only, so that every room and every worker process can import them for free. Units live
in the names (`times_s`, `drop_pp`). Raw samples are kept; whatever can be derived from them is a
property or a function elsewhere, never a stored field. Where a record is read from disk,
`resdeploy.store` validates it with pydantic and refuses unknown keys.
"""

from __future__ import annotations

from resdeploy.records.artifacts import (
    Artifact,
    Availability,
    Calibration,
    EngineOptions,
    Execution,
    Layer,
    ModelSpec,
    Port,
    Preprocessing,
    Weights,
)
from resdeploy.records.costs import Cost, LayerCost, LayerRoof, Peaks, Roof, Roofline
from resdeploy.records.judged import (
    Audit,
    BlockAudit,
    Check,
    ClassDrop,
    Flip,
    Gate,
    Judged,
    Origin,
    Predictions,
    Reported,
    Score,
    Subject,
    Verdict,
)
from resdeploy.records.plans import Lesion, Mixed, Profile, Sensitivity
from resdeploy.records.timing import Block, Change, Comparison, Failure, Measurement, Replay, Summary
from resdeploy.records.vocabulary import (
    BYTES,
    PRECISIONS,
    STRICT,
    BackendName,
    Effort,
    Format,
    Precision,
    Progress,
    Scenario,
    Scope,
    State,
    Target,
)

__all__ = [
    "BYTES",
    "PRECISIONS",
    "STRICT",
    "Artifact",
    "Audit",
    "Availability",
    "BackendName",
    "Block",
    "BlockAudit",
    "Calibration",
    "Change",
    "Check",
    "ClassDrop",
    "Comparison",
    "Cost",
    "Effort",
    "EngineOptions",
    "Execution",
    "Failure",
    "Flip",
    "Format",
    "Gate",
    "Judged",
    "Layer",
    "LayerCost",
    "LayerRoof",
    "Lesion",
    "Measurement",
    "Mixed",
    "ModelSpec",
    "Origin",
    "Peaks",
    "Port",
    "Precision",
    "Predictions",
    "Preprocessing",
    "Profile",
    "Progress",
    "Replay",
    "Reported",
    "Roof",
    "Roofline",
    "Scenario",
    "Scope",
    "Score",
    "Sensitivity",
    "State",
    "Subject",
    "Summary",
    "Target",
    "Verdict",
    "Weights",
]
