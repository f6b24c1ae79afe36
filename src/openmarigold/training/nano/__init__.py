# SPDX-License-Identifier: Apache-2.0
"""The toy autoencoder and image generator, from which a small model can be trained without downloads."""
