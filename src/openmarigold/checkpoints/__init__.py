# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint folder or a repository of the hub says, read once; no torch here."""
