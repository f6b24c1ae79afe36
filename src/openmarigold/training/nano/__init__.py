# SPDX-License-Identifier: Apache-2.0
"""The embedded model of earlier days from nothing: its own autoencoder and image generator."""
