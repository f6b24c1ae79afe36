# SPDX-License-Identifier: Apache-2.0
"""Maps, models and textures of one game, UFO: Alien Invasion; imported only where its packages are asked for.

`quake` reads the file formats, `meshes` makes meshes of them, `pieces` assigns models and textures to uses, `streets`
makes scenes of the maps.
"""
