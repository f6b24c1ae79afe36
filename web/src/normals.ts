// SPDX-License-Identifier: Apache-2.0
/** Normals of the surface that a depth map shows: `openmarigold.geometry.normals_from_depth` without support. */

import type { CameraFacts, MapArray } from "./readers";

const SMOOTH = 1e-4;
const MIN_LENGTH = 1e-6;

/**
 * Unit vectors, x right, y up, z backward; (0, 0, 0) where there is none.
 *
 * On a plane 1/z is affine in the pixel's place. In each direction the neighbor on the smoother side counts for more.
 *
 * @param depth planar depth, positive where valid
 * @param shift what is added to it first
 */
export function normalsFromDepth(depth: MapArray, camera: CameraFacts, shift: number): MapArray {
  const { width, height } = depth;
  const disparity = new Float64Array(width * height);
  for (let index = 0; index < disparity.length; index += 1) {
    const value = depth.values[index]! + shift;
    disparity[index] = Number.isFinite(value) && value > 0 ? 1 / value : NaN;
  }
  const across = slopes(disparity, height, width, width, 1);
  const down = slopes(disparity, width, height, 1, width);
  const values = new Float32Array(3 * width * height);
  for (let row = 0, index = 0; row < height; row += 1) {
    for (let column = 0; column < width; column += 1, index += 1) {
      const alongX = across[index]!;
      const alongY = down[index]!;
      const towards = disparity[index]! - (column - camera.cx) * alongX - (row - camera.cy) * alongY;
      const x = -camera.fx * alongX;
      const y = camera.fy * alongY;
      const length = Math.max(Math.sqrt(x * x + y * y + towards * towards), MIN_LENGTH);
      if (!Number.isFinite(length)) continue;
      values[3 * index] = x / length;
      values[3 * index + 1] = y / length;
      values[3 * index + 2] = towards / length;
    }
  }
  return { width, height, channels: 3, values };
}

/** Change of values along lines, from the smoother side of each one. */
function slopes(values: Float64Array, lines: number, length: number, lineStep: number, step: number): Float64Array {
  const out = new Float64Array(values.length);
  const slope = new Float64Array(length + 1); // slope[i]: from i - 1 to i
  const bend = new Float64Array(length + 2); // bend[i + 1]: around i
  for (let line = 0; line < lines; line += 1) {
    const start = line * lineStep;
    slope[0] = slope[length] = NaN;
    bend[0] = bend[length + 1] = NaN;
    for (let at = 1; at < length; at += 1) {
      slope[at] = values[start + at * step]! - values[start + (at - 1) * step]!;
    }
    for (let at = 0; at < length; at += 1) bend[at + 1] = Math.abs(slope[at + 1]! - slope[at]!);
    for (let at = 0; at < length; at += 1) {
      const floor = (SMOOTH * Math.abs(values[start + at * step]!)) ** 2;
      const left = weight(slope[at]!, bend[at]!, bend[at + 1]!, floor);
      const right = weight(slope[at + 1]!, bend[at + 2]!, bend[at + 1]!, floor);
      const total = (left && left * slope[at]!) + (right && right * slope[at + 1]!);
      out[start + at * step] = total / (left + right);
    }
  }
  return out;
}

function weight(slope: number, outer: number, here: number, floor: number): number {
  if (Number.isNaN(slope)) return 0;
  const bent = Number.isNaN(outer) ? here : outer;
  const rough = Number.isNaN(bent) ? 0 : bent;
  return 1 / (rough * rough + floor);
}
