"""Numbers that a plan takes and `--help` shows: one place for both, which no vendor needs to be imported for."""

from __future__ import annotations

LR = 0.1  # peak learning rate of a training from random weights
# Likewise from weights with something to learn anew, a new last layer or the work of blocks that are gone: a tenth of
# it, "to make progress while not clobbering the initialization" (Girshick et al. 2014, arXiv:1311.2524, section 2.3).
ADAPTING_LR = 0.01
# Likewise from weights that know the classes already: measured, docs/training.md.
FINE_TUNING_LR = 0.003
QAT_LR = 3e-5  # likewise, of the weights and biases of an INT8 file
# What separate runs differ by anyway, in percent. Chosen, not measured: above criterion's 1 %, which is for runs that
# follow each other at once, while these may be days apart. Who knows his machine says --noise.
NOISE_PCT = 3.0
