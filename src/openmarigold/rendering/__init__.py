# SPDX-License-Identifier: Apache-2.0
"""Synthetic RGB-D: scenes from a seed, path-traced colours, exact planar depth.

A `scene` is plain NumPy. Samplers (`rooms`, `tabletops`) make scenes out of procedural shapes (`primitives`,
`furniture`) or of whatever else a `Catalogue` holds; `rays` casts rays on them for placing things and for depth;
`cameras` proposes views and rejects dull ones; `blender` alone imports bpy and makes colours; `development` turns those
into a photo; `render` runs it all.
"""
