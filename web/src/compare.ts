// SPDX-License-Identifier: Apache-2.0
/** Photo and map in one frame, with a border between them that can be moved. */

import { ColorMaps, type ColorTable, paintColors, paintLegend, paintScalar, scalingOf } from "./colors";
import { byId, make } from "./dom";
import { normalsFromDepth } from "./normals";
import type { MapArray } from "./readers";
import type { Entry, Result } from "./session";
import type { View } from "./views";

export class Compare {
  private readonly frame = byId("frame");
  private readonly photo = byId<HTMLImageElement>("photo");
  private readonly canvas = byId<HTMLCanvasElement>("map");
  private readonly split = byId<HTMLInputElement>("split");
  private readonly list = byId<HTMLSelectElement>("colors");
  private shown: MapArray | null = null;
  private unit = "";
  private photoUrl = "";
  private texture: Blob | null = null;

  constructor(
    private readonly colorMaps: ColorMaps,
    onColors: (name: string) => void,
  ) {
    const group = (label: string, names: string[]) =>
      make("optgroup", { label }, ...names.map((name) => make("option", {}, name)));
    this.list.append(group("Also in files", colorMaps.ofServer), group("Only here", colorMaps.own));
    this.list.addEventListener("change", () => onColors(this.list.value));
    this.split.addEventListener("input", () => this.place());
    this.frame.addEventListener("pointermove", (event) => this.read(event));
    this.frame.addEventListener("pointerleave", () => (byId("readout").textContent = ""));
    this.photo.addEventListener("error", () => void this.useTexture());
    this.place();
  }

  async show(entry: Entry, result: Result, view: View, colors: string): Promise<void> {
    const table = await this.colorMaps.load(colors);
    this.texture = result.surface?.texture ?? null;
    if (this.photoUrl !== entry.photo.url) {
      this.photoUrl = entry.photo.url;
      this.photo.classList.remove("missing");
      this.photo.src = entry.photo.url;
      this.photo.alt = `The photo ${entry.photo.name}`;
    }
    const map = this.mapOf(result, view);
    if (map === null) return;
    this.shown = map;
    byId("panel").style.setProperty("--ratio", String(map.width / map.height));
    this.list.value = colors;
    const isScalar = map.channels === 1;
    byId("legend").hidden = !isScalar;
    this.list.disabled = !isScalar;
    this.list.closest("label")!.hidden = !isScalar;
    this.unit = view.kind === "uncertainty" ? "disagreement of the members" : (view.map?.unit ?? "");
    if (isScalar) this.paintScalar(map, view, table);
    else paintColors(this.canvas, map, view.kind === "normals" ? "vector" : (view.map?.space ?? "srgb"));
    byId("tag-map").textContent = view.title;
    this.canvas.setAttribute("aria-label", `${view.title} of ${entry.photo.name}, ${map.width} by ${map.height} pixels`);
    this.place();
  }

  private paintScalar(map: MapArray, view: View, table: ColorTable): void {
    const scaling = scalingOf(map, view.map, view.modality.space);
    paintScalar(this.canvas, map, table, scaling);
    paintLegend(byId<HTMLCanvasElement>("legend-bar"), table);
    byId("legend-low").textContent = numberText(scaling.low);
    byId("legend-high").textContent = numberText(scaling.high);
    byId("legend").title = this.unit;
  }

  /** What a view shows. */
  mapOf(result: Result, view: View): MapArray | null {
    if (view.kind !== "normals") return result.maps.get(view.file) ?? null;
    const depth = result.maps.get(view.map?.file_name ?? "");
    if (!depth || result.surface === null) return null;
    const shift = result.modality.invariance === "affine" ? Number(result.surface.record.shift ?? 0) : 0;
    return normalsFromDepth(depth, result.surface.camera, shift);
  }

  /** A small picture of what is shown, for the history. */
  async thumbnail(): Promise<string> {
    const small = document.createElement("canvas");
    const factor = 160 / Math.max(this.canvas.width, this.canvas.height, 1);
    small.width = Math.max(1, Math.round(this.canvas.width * factor));
    small.height = Math.max(1, Math.round(this.canvas.height * factor));
    small.getContext("2d")?.drawImage(this.canvas, 0, 0, small.width, small.height);
    const blob = await new Promise<Blob | null>((done) => small.toBlob(done, "image/png"));
    return blob === null ? "" : URL.createObjectURL(blob);
  }

  private place(): void {
    const value = Number(this.split.value);
    this.frame.style.setProperty("--split", `${value}%`);
    this.split.setAttribute("aria-valuetext", `photo on the left ${Math.round(value)} percent, map on the right`);
    this.frame.classList.toggle("all-map", value < 12);
    this.frame.classList.toggle("all-photo", value > 88);
  }

  /** Photos of kinds that browsers do not show appear as the mesh has them. */
  private async useTexture(): Promise<void> {
    if (this.photo.classList.contains("missing")) return;
    this.photo.classList.add("missing");
    if (this.texture === null) {
      this.split.value = "0";
      this.place();
      return;
    }
    this.photo.src = URL.createObjectURL(this.texture);
  }

  private read(event: PointerEvent): void {
    const box = this.frame.getBoundingClientRect();
    const map = this.shown;
    if (map === null || !box.width) return;
    const column = Math.min(map.width - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * map.width)));
    const row = Math.min(map.height - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * map.height)));
    const at = (row * map.width + column) * map.channels;
    const values = [...map.values.subarray(at, at + map.channels)].map(numberText).join(", ");
    byId("readout").textContent = `(${column}, ${row})  ${values}`;
    byId("readout").title = this.unit;
  }
}

function numberText(value: number): string {
  if (!Number.isFinite(value)) return "unknown";
  return Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3).replace(/\.?0+$/, "") || "0";
}
