# SPDX-License-Identifier: Apache-2.0
"""The U-Net and the VAE in torch: load, widen, save, rewrite, convert."""
