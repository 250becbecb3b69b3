"""Roofs of GPUs as their makers state them: dense rates at boost clock, never reached in full.

Written without the data sheets at hand; docs/cost.md says which figures a second page confirmed.

Sheets that print rates "with sparsity" are halved. FP32 is that of the general cores: TensorRT computes FP32
convolutions in TF32 on tensor cores unless told otherwise, and can then exceed it. None of these was measured by us.
"""

from __future__ import annotations

from collections.abc import Mapping

from resdeploy.records import Peaks, Precision, Roof

T, G = 1e12, 1e9


def _gpu(
    name: str,
    source: str,
    gb_s: float,
    *,
    fp32: float,
    fp16: float,
    int8: float,
    bf16: float | None = None,
    missing: Mapping[Precision, str] | None = None,
) -> Peaks:
    """Rates in TFLOP/s and TOP/s; `missing` says why there is no BF16."""
    rates: dict[Precision, float] = {"fp32": fp32, "fp16": fp16, "int8": int8}
    if bf16 is not None:
        rates["bf16"] = bf16
    return Peaks(
        name=name,
        source=source,
        roofs={precision: Roof(rate=rate * T, by="data sheet, unverified") for precision, rate in rates.items()},
        bandwidth=Roof(rate=gb_s * G, by="data sheet, unverified"),
        missing=missing or {},
        measured=False,
        notes=("its roofs are unverified: they were written down without its data sheet",),
    )


_NO_BF16: Mapping[Precision, str] = {"bf16": "Turing's tensor cores have no BF16"}

GPUS: Mapping[str, Peaks] = {
    "t4": _gpu(
        "NVIDIA T4 (70 W)",
        "NVIDIA T4 data sheet: FP16 65, INT8 130",
        320,
        fp32=8.1,
        fp16=65,
        int8=130,
        missing=_NO_BF16,
    ),
    "l4": _gpu(
        "NVIDIA L4 (72 W)",
        "NVIDIA L4 data sheet: FP16/BF16 242, INT8 485 with sparsity, halved",
        300,
        fp32=30.3,
        fp16=121,
        bf16=121,
        int8=242.5,
    ),
    "a10": _gpu(
        "NVIDIA A10 (150 W)",
        "NVIDIA A10 data sheet: FP16/BF16 125, INT8 250, dense",
        600,
        fp32=31.2,
        fp16=125,
        bf16=125,
        int8=250,
    ),
    "l40s": _gpu(
        "NVIDIA L40S (350 W)",
        "NVIDIA L40S data sheet: FP16/BF16 362.05, INT8 733, dense",
        864,
        fp32=91.6,
        fp16=362.05,
        bf16=362.05,
        int8=733,
    ),
    "a100": _gpu(
        "NVIDIA A100 SXM4 80 GB (400 W)",
        "NVIDIA A100 data sheet: FP16/BF16 312, INT8 624, dense",
        2039,
        fp32=19.5,
        fp16=312,
        bf16=312,
        int8=624,
    ),
    "h100": _gpu(
        "NVIDIA H100 SXM5 80 GB (700 W)",
        "NVIDIA H100 data sheet: FP16/BF16 1,979, INT8 3,958 with sparsity, halved",
        3350,
        fp32=67,
        fp16=989.5,
        bf16=989.5,
        int8=1979,
    ),
    "h200": _gpu(
        "NVIDIA H200 SXM 141 GB (700 W)",
        "NVIDIA H200 data sheet: FP16/BF16 1,979, INT8 3,958 with sparsity, halved",
        4800,
        fp32=67,
        fp16=989.5,
        bf16=989.5,
        int8=1979,
    ),
    "b200": _gpu(
        "NVIDIA B200 (one GPU of HGX B200, 1,000 W)",
        "NVIDIA HGX data sheet, 8 GPUs: FP16/BF16 36 P, INT8 72 P with sparsity, 62 TB/s; halved, and an eighth",
        7750,
        fp32=75,
        fp16=2250,
        bf16=2250,
        int8=4500,
    ),
    "orin": _gpu(
        "NVIDIA Jetson AGX Orin 64 GB (MAXN, 1.3 GHz, GPU without the DLAs)",
        "NVIDIA Jetson AGX Orin Series technical brief: INT8 170 sparse, halved; FP16 half of that, as in Ampere",
        204.8,
        fp32=5.3,
        fp16=42.5,
        int8=85,
        missing={"bf16": "the technical brief gives no BF16 rate"},
    ),
}
