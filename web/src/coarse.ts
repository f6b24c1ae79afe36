// SPDX-License-Identifier: Apache-2.0
/** Fewer triangles for a mesh over a grid of pixels. */

import type { SurfaceMesh } from "./readers";

/** Sides of the squares of grid cells that become two triangles, the largest first. */
const STRIDES = [8, 4, 2];

export interface CoarseMesh {
  positions: Float32Array;
  uv: Float32Array;
  triangles: Uint32Array;
}

/**
 * Two triangles for each square of the grid whose surface is whole, as large as possible; all triangles elsewhere, so
 * that edges stay as they are. Vertices that are not used are left out.
 */
export function coarseMesh(surface: SurfaceMesh): CoarseMesh {
  const { triangles, uv, camera } = surface;
  const rows = gridLines(uv, 1, camera.height);
  const columns = gridLines(uv, 0, camera.width);
  const grid = new Int32Array(rows.count * columns.count).fill(-1);
  for (let vertex = 0; vertex < uv.length / 2; vertex += 1) {
    grid[rows.of[vertex]! * columns.count + columns.of[vertex]!] = vertex;
  }
  const corners = new Uint32Array(triangles.length / 3); // row and column of the upper left corner of each one's cell
  for (let at = 0; at < triangles.length; at += 3) {
    const [a, b, c] = [triangles[at]!, triangles[at + 1]!, triangles[at + 2]!];
    const row = Math.min(rows.of[a]!, rows.of[b]!, rows.of[c]!);
    corners[at / 3] = row * columns.count + Math.min(columns.of[a]!, columns.of[b]!, columns.of[c]!);
  }
  const levels = STRIDES.map((stride) => new Squares(stride, rows.count, columns.count, corners));
  const chosen: number[] = [];
  for (let index = 0; index < corners.length; index += 1) {
    if (levels.some((level) => level.isWhole(corners[index]!))) continue;
    chosen.push(triangles[3 * index]!, triangles[3 * index + 1]!, triangles[3 * index + 2]!);
  }
  levels.forEach((level, depth) => {
    level.forEachWhole((corner) => {
      if (levels.slice(0, depth).some((larger) => larger.isWhole(corner))) return;
      const below = corner + level.stride * columns.count;
      const [a, b] = [grid[corner]!, grid[corner + level.stride]!];
      const [c, d] = [grid[below]!, grid[below + level.stride]!];
      chosen.push(a, c, b, b, c, d);
    });
  });
  return compacted(surface, chosen);
}

/** Squares of grid cells of one size, and how many triangles each one holds. */
class Squares {
  private readonly across: number;
  private readonly counts: Uint8Array;

  constructor(
    readonly stride: number,
    private readonly rows: number,
    private readonly columns: number,
    corners: Uint32Array,
  ) {
    this.across = Math.ceil(columns / stride) + 1;
    this.counts = new Uint8Array(this.across * (Math.ceil(rows / stride) + 1));
    for (const corner of corners) this.counts[this.numberOf(corner)]! += 1;
  }

  isWhole(corner: number): boolean {
    return this.counts[this.numberOf(corner)] === 2 * this.stride * this.stride;
  }

  /** Calls back with the upper left corner of each square without a hole. */
  forEachWhole(found: (corner: number) => void): void {
    for (let row = 0; row + this.stride < this.rows; row += this.stride) {
      for (let column = 0; column + this.stride < this.columns; column += this.stride) {
        const corner = row * this.columns + column;
        if (this.isWhole(corner)) found(corner);
      }
    }
  }

  private numberOf(corner: number): number {
    const row = Math.floor(corner / this.columns);
    return Math.floor(row / this.stride) * this.across + Math.floor((corner - row * this.columns) / this.stride);
  }
}

/** Number of the grid line that each vertex lies on. */
function gridLines(uv: Float32Array, part: 0 | 1, side: number): { of: Int32Array; count: number } {
  const count = uv.length / 2;
  const place = (vertex: number) => Math.min(side - 1, Math.floor(uv[2 * vertex + part]! * side));
  const seen = new Uint8Array(side);
  for (let vertex = 0; vertex < count; vertex += 1) seen[place(vertex)] = 1;
  const numbers = new Int32Array(side);
  let lines = 0;
  for (let line = 0; line < side; line += 1) if (seen[line]) numbers[line] = lines++;
  return { of: Int32Array.from({ length: count }, (_, vertex) => numbers[place(vertex)]!), count: lines };
}

function compacted(surface: SurfaceMesh, chosen: number[]): CoarseMesh {
  const numbers = new Int32Array(surface.uv.length / 2).fill(-1);
  const used: number[] = [];
  const triangles = Uint32Array.from(chosen, (vertex) => {
    if (numbers[vertex] === -1) numbers[vertex] = used.push(vertex) - 1;
    return numbers[vertex]!;
  });
  const positions = new Float32Array(3 * used.length);
  const uv = new Float32Array(2 * used.length);
  used.forEach((vertex, index) => {
    positions.set(surface.positions.subarray(3 * vertex, 3 * vertex + 3), 3 * index);
    uv.set(surface.uv.subarray(2 * vertex, 2 * vertex + 2), 2 * index);
  });
  return { positions, uv, triangles };
}
