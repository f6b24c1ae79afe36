# SPDX-License-Identifier: Apache-2.0
"""Data sets; no torch here.

For training, where samples come from (`sources`) and how they are varied (`augmentation`). For evaluation, the
benchmarks (`benchmarks`: the rows; `benchmark`: access to one; `benchmark_readers`: formats; `archives`: folders,
tars and zips).
"""
