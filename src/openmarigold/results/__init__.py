# SPDX-License-Identifier: Apache-2.0
"""Many photos to result files: inputs, writers, manifest, provenance."""
