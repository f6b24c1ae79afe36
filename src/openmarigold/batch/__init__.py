# SPDX-License-Identifier: Apache-2.0
"""Millions of photos to shards: any address in and out, one worker or many, each photo exactly once."""
