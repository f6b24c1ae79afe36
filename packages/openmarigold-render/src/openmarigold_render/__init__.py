# SPDX-License-Identifier: Apache-2.0
"""Synthetic RGB-D: scenes from a seed, path-traced colors, exact planar depth.

A `scene` is plain NumPy. Samplers (`rooms`, `tabletops`, `streets`, `thin`) make scenes out of procedural shapes
(`primitives`, `furniture`) or of whatever else a `Catalog` holds; `rays` casts rays on them for placing things and for
depth; `cameras` proposes views and rejects dull ones; `blender` alone imports bpy and makes colors; `development` turns
those into a photo; `render` runs it all. `core` holds everything that comes from openmarigold.
"""

__version__ = "0.1.0"
