// SPDX-License-Identifier: Apache-2.0
/** Fewer triangles for a mesh over a grid of pixels. */

import type { SurfaceMesh } from "./readers";

const STRIDE = 4;

/**
 * Triangles over every fourth row and column where the surface between is whole; all triangles elsewhere, so that edges
 * stay as they are.
 */
export function coarseTriangles(surface: SurfaceMesh): Uint32Array {
  const { triangles, uv, camera } = surface;
  const count = uv.length / 2;
  const rows = numbered(uv, 1, camera.height);
  const columns = numbered(uv, 0, camera.width);
  const across = Math.ceil(columns.count / STRIDE) + 1;
  const cells = new Uint8Array(across * (Math.ceil(rows.count / STRIDE) + 1));
  const grid = new Int32Array(rows.count * columns.count).fill(-1);
  for (let vertex = 0; vertex < count; vertex += 1) grid[rows.of[vertex]! * columns.count + columns.of[vertex]!] = vertex;
  const cellOf = (at: number): number => {
    const [a, b, c] = [triangles[at]!, triangles[at + 1]!, triangles[at + 2]!];
    const row = Math.min(rows.of[a]!, rows.of[b]!, rows.of[c]!);
    const column = Math.min(columns.of[a]!, columns.of[b]!, columns.of[c]!);
    return Math.floor(row / STRIDE) * across + Math.floor(column / STRIDE);
  };
  for (let at = 0; at < triangles.length; at += 3) cells[cellOf(at)]! += 1;
  const whole = 2 * STRIDE * STRIDE;
  const out = new Uint32Array(triangles.length);
  let size = 0;
  for (let at = 0; at < triangles.length; at += 3) {
    if (cells[cellOf(at)] === whole) continue;
    out[size] = triangles[at]!;
    out[size + 1] = triangles[at + 1]!;
    out[size + 2] = triangles[at + 2]!;
    size += 3;
  }
  for (let row = 0; row + STRIDE < rows.count; row += STRIDE) {
    for (let column = 0; column + STRIDE < columns.count; column += STRIDE) {
      if (cells[(row / STRIDE) * across + column / STRIDE] !== whole) continue;
      const corner = row * columns.count + column;
      const [a, b] = [grid[corner]!, grid[corner + STRIDE]!];
      const below = corner + STRIDE * columns.count;
      const [c, d] = [grid[below]!, grid[below + STRIDE]!];
      out.set([a, c, b, b, c, d], size);
      size += 6;
    }
  }
  return out.slice(0, size);
}

/** Number of the grid line that each vertex lies on. */
function numbered(uv: Float32Array, part: 0 | 1, side: number): { of: Int32Array; count: number } {
  const count = uv.length / 2;
  const place = (vertex: number) => Math.min(side - 1, Math.floor(uv[2 * vertex + part]! * side));
  const seen = new Uint8Array(side);
  for (let vertex = 0; vertex < count; vertex += 1) seen[place(vertex)] = 1;
  const numbers = new Int32Array(side);
  let lines = 0;
  for (let line = 0; line < side; line += 1) if (seen[line]) numbers[line] = lines++;
  return { of: Int32Array.from({ length: count }, (_, vertex) => numbers[place(vertex)]!), count: lines };
}
