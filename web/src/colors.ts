// SPDX-License-Identifier: Apache-2.0
/** Maps as pictures, computed here from their numbers, so that other colors need no request. */

import { fetchColors, type MapFacts } from "./api";
import type { MapArray } from "./readers";

/** Colors from the lowest value to the highest, three bytes each. */
export type ColorTable = Uint8Array;

const LEVELS = 512;
/** Color maps of this page, as stops in OKLCH: lightness, chroma, hue [deg]. Files cannot have them. */
const OWN: Record<string, [number, number, number][]> = {
  Dusk: [
    [0.96, 0.07, 95],
    [0.78, 0.16, 62],
    [0.6, 0.19, 22],
    [0.4, 0.15, -30],
    [0.18, 0.07, -70],
  ],
  Lagoon: [
    [0.97, 0.06, 120],
    [0.82, 0.11, 165],
    [0.62, 0.1, 215],
    [0.41, 0.1, 255],
    [0.17, 0.06, 285],
  ],
};
const SMALLEST_SHOWN = 1e-6;
const QUANTILE_LINES = 1000;

const GRAY = "gray";

/** Color maps by name: those of the server, whose names the command line knows, then the page's own. */
export class ColorMaps {
  private readonly tables = new Map<string, ColorTable>();
  readonly own = Object.keys(OWN);

  constructor(readonly ofServer: string[]) {
    for (const [name, stops] of Object.entries(OWN)) this.tables.set(name, fromStops(stops));
    this.tables.set(GRAY, Uint8Array.from({ length: 256 * 3 }, (_, index) => Math.floor(index / 3)));
    if (!ofServer.includes(GRAY)) this.own.push(GRAY);
  }

  has(name: string): boolean {
    return this.own.includes(name) || this.ofServer.includes(name);
  }

  /** The table of a map, from the server if it is not here. */
  async load(name: string): Promise<ColorTable> {
    const known = this.tables.get(name);
    if (known !== undefined) return known;
    const table = await fetchColors(name);
    this.tables.set(name, table);
    return table;
  }
}

function fromStops(stops: [number, number, number][]): ColorTable {
  const table = new Uint8Array(3 * LEVELS);
  for (let level = 0; level < LEVELS; level += 1) {
    const place = (level / (LEVELS - 1)) * (stops.length - 1);
    const index = Math.min(Math.floor(place), stops.length - 2);
    const share = place - index;
    const mixed = stops[index]!.map((value, part) => value + share * (stops[index + 1]![part]! - value));
    table.set(srgbOf(mixed as [number, number, number]), 3 * level);
  }
  return table;
}

/** sRGB of OKLCH (B. Ottosson, 2020). */
function srgbOf([lightness, chroma, hue]: [number, number, number]): number[] {
  const a = chroma * Math.cos((hue * Math.PI) / 180);
  const b = chroma * Math.sin((hue * Math.PI) / 180);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map((light) => Math.round(255 * encodeSrgb(Math.min(1, Math.max(0, light)))));
}

function encodeSrgb(light: number): number {
  return light <= 0.0031308 ? 12.92 * light : 1.055 * light ** (1 / 2.4) - 0.055;
}

/** How the values of a map with one channel become shares of a color table. */
export interface Scaling {
  low: number;
  high: number;
  isLog: boolean;
}

/** Quantiles of every n-th row and column of finite values, or of their logarithms; linear between neighbors. */
function quantiles(map: MapArray, shares: number[], isLog: boolean): number[] {
  const down = Math.max(1, Math.floor(map.height / QUANTILE_LINES));
  const across = Math.max(1, Math.floor(map.width / QUANTILE_LINES));
  const some = new Float32Array(Math.ceil(map.height / down) * Math.ceil(map.width / across));
  let count = 0;
  for (let row = 0; row < map.height; row += down) {
    for (let column = 0; column < map.width; column += across) {
      const value = map.values[row * map.width + column]!;
      if (Number.isFinite(value)) some[count++] = isLog ? Math.log(Math.max(value, SMALLEST_SHOWN)) : value;
    }
  }
  const sorted = some.subarray(0, count).sort();
  return shares.map((share) => {
    const place = share * (count - 1);
    const index = Math.floor(place);
    const next = sorted[Math.min(index + 1, count - 1)] ?? 1;
    const value = sorted[index] ?? 0;
    return value + (place - index) * (next - value);
  });
}

/** The scaling of the colored picture that the service writes. */
export function scalingOf(map: MapArray, facts: MapFacts | null, space: string): Scaling {
  if (facts === null) {
    const white = quantiles(map, [0.98], false)[0] || quantiles(map, [1], false)[0]!;
    return { low: 0, high: white || 1, isLog: false };
  }
  if (space === "log") {
    const [low = 0, high = 1] = quantiles(map, [0.01, 0.99], true);
    return { low: Math.exp(low), high: Math.exp(high), isLog: true };
  }
  const [low, high] = facts.range;
  if (low !== null && high !== null && Number.isFinite(low) && Number.isFinite(high)) return { low, high, isLog: false };
  const [least = 0, most = 1] = quantiles(map, [0.01, 0.99], false);
  return { low: least, high: most, isLog: false };
}

/** Paints a map with one channel. */
export function paintScalar(canvas: HTMLCanvasElement, map: MapArray, table: ColorTable, scaling: Scaling): void {
  paint(canvas, map, (pixels) => {
    const last = table.length / 3 - 1;
    const place = (value: number) => (scaling.isLog ? Math.log(Math.max(value, SMALLEST_SHOWN)) : value);
    const low = place(scaling.low);
    const factor = 1 / Math.max(place(scaling.high) - low, SMALLEST_SHOWN);
    for (let index = 0, at = 0; index < map.values.length; index += 1, at += 4) {
      const value = map.values[index]!;
      if (Number.isNaN(value)) continue; // black
      const level = Math.round(Math.min(1, Math.max(0, (place(value) - low) * factor)) * last) * 3;
      pixels[at] = table[level]!;
      pixels[at + 1] = table[level + 1]!;
      pixels[at + 2] = table[level + 2]!;
    }
  });
}

/** Paints a map with three channels: vectors, light or sRGB. */
export function paintColors(canvas: HTMLCanvasElement, map: MapArray, space: string): void {
  paint(canvas, map, (pixels) => {
    const shown =
      space === "vector"
        ? (value: number) => (value + 1) / 2
        : space === "srgb"
          ? (value: number) => value
          : (value: number) => encodeSrgb(Math.max(0, value));
    for (let index = 0, at = 0; index < map.values.length; index += map.channels, at += 4) {
      for (let channel = 0; channel < 3; channel += 1) {
        pixels[at + channel] = 255 * Math.min(1, Math.max(0, shown(map.values[index + channel]!)));
      }
    }
  });
}

function paint(canvas: HTMLCanvasElement, map: MapArray, fill: (pixels: Uint8ClampedArray) => void): void {
  canvas.width = map.width;
  canvas.height = map.height;
  const context = canvas.getContext("2d");
  if (context === null) throw new Error("this browser cannot draw on a canvas");
  const image = context.createImageData(map.width, map.height);
  for (let at = 3; at < image.data.length; at += 4) image.data[at] = 255;
  fill(image.data);
  context.putImageData(image, 0, 0);
}

/** The table as a bar, from low to high. */
export function paintLegend(canvas: HTMLCanvasElement, table: ColorTable): void {
  const levels = table.length / 3;
  const values = Float32Array.from({ length: canvas.width }, (_, index) => index / (canvas.width - 1));
  const bar: MapArray = { height: 1, width: canvas.width, channels: 1, values };
  paintScalar(canvas, bar, levels ? table : new Uint8Array(6), { low: 0, high: 1, isLog: false });
}
