// SPDX-License-Identifier: Apache-2.0
/** Parts of the 3-D view that know nothing of its state. */

import { BufferAttribute, BufferGeometry, Mesh, type MeshBasicMaterial } from "three";
import type { CoarseMesh } from "./coarse";

/** One of so many points is drawn while the view moves on a slow machine. */
export const SPREAD = 5;

/** Numbers of vertices, so that the first ones of them are spread over all. */
export function spreadOut(count: number): Uint32Array {
  const order = new Uint32Array(count);
  let at = 0;
  for (let first = 0; first < SPREAD; first += 1) for (let index = first; index < count; index += SPREAD) order[at++] = index;
  return order;
}

/** What is drawn of vertices and triangles. */
export function meshOf(
  { positions, uv, triangles }: CoarseMesh,
  material: MeshBasicMaterial,
): Mesh<BufferGeometry, MeshBasicMaterial> {
  const geometry = new BufferGeometry();
  geometry.setAttribute("position", new BufferAttribute(positions, 3));
  geometry.setAttribute("uv", new BufferAttribute(uv, 2));
  geometry.setIndex(new BufferAttribute(triangles, 1));
  const mesh = new Mesh(geometry, material);
  mesh.frustumCulled = false; // there is nothing else
  return mesh;
}

/** The photo's colors at places of the texture, three bytes each. */
export function colorsAt(uv: Float32Array, bitmap: ImageBitmap): Uint8Array {
  const canvas = document.createElement("canvas");
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const colors = new Uint8Array((uv.length / 2) * 3);
  if (context === null) return colors.fill(128);
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
  for (let index = 0, at = 0; index < uv.length; index += 2, at += 3) {
    const column = Math.min(bitmap.width - 1, Math.floor(uv[index]! * bitmap.width));
    const row = Math.min(bitmap.height - 1, Math.floor(uv[index + 1]! * bitmap.height));
    const from = 4 * (row * bitmap.width + column);
    colors[at] = pixels[from]!;
    colors[at + 1] = pixels[from + 1]!;
    colors[at + 2] = pixels[from + 2]!;
  }
  return colors;
}

let software: boolean | null = null;

/** Whether 3-D is drawn without a graphics card. */
export function isSoftware(): boolean {
  if (software === null) {
    const context = document.createElement("canvas").getContext("webgl2");
    const info = context?.getExtension("WEBGL_debug_renderer_info");
    const name = info ? String(context?.getParameter(info.UNMASKED_RENDERER_WEBGL)) : "";
    software = /swiftshader|llvmpipe|software|basic render/i.test(name);
    context?.getExtension("WEBGL_lose_context")?.loseContext();
  }
  return software;
}
