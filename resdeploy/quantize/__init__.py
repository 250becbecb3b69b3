"""Post-training quantization: calibration, ranges, corrections, and the INT8 file that comes of them."""
