# SPDX-License-Identifier: Apache-2.0
"""Predictions over HTTP: requests, a bounded queue, jobs, and the client. The bytes are those of `predict`."""
