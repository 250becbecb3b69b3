"""Numbers that a plan takes and `--help` shows: one place for both, which no vendor needs to be imported for."""

from __future__ import annotations

LR = 0.1  # peak learning rate of a training from random weights
FINE_TUNING_LR = 0.001  # likewise, from trained weights
# Likewise, of a network that has lost blocks and learns the whole one's logits: it has more to make good.
REPAIR_LR = 0.01
QAT_LR = 3e-5  # likewise, of the weights and biases of an INT8 file
# What separate runs differ by anyway, in percent. Chosen, not measured: above criterion's 1 %, which is for runs that
# follow each other at once, while these may be days apart. Who knows his machine says --noise.
NOISE_PCT = 3.0
