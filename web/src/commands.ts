// SPDX-License-Identifier: Apache-2.0
/** Lines for a terminal and for Python that make what the page shows. */

import type { ModalityFacts, Value } from "./api";

/** What is to be reproduced. */
export interface Shown {
  modality: ModalityFacts;
  /** The photo's file name. */
  photo: string;
  /** Settings that differ from the defaults of the command line. */
  settings: Record<string, Value>;
  formats: string[];
  /** Whether normals are computed from the surface. */
  withNormals: boolean;
}

/** Settings of files; all others belong to the call. */
const OUTPUT = new Set(["color_map", "inverted", "uncertainty_picture", "normal_frame", "green", "ply", "glb",
  "max_points", "max_depth", "drop_far", "drop_uncertain"]);
/** Settings that are no whole numbers in Python even where their value is one. */
const FRACTIONS = new Set(["fov", "focal_px", "ensemble_tolerance", "max_depth", "drop_far", "drop_uncertain"]);
const DEFAULT_FORMATS = ["npy", "png"];

/** A word as a POSIX shell takes it. */
export function quoted(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}

function argument(photo: string): string {
  return photo.startsWith("-") ? `./${photo}` : photo;
}

function isDefault(formats: string[]): boolean {
  return formats.join() === DEFAULT_FORMATS.join();
}

export function stemOf(photo: string): string {
  const dot = photo.lastIndexOf(".");
  return dot > 0 && dot < photo.length - 1 ? photo.slice(0, dot) : photo;
}

/** The words of one command, quoted for a shell. */
export function commandWords(shown: Shown): string[] {
  const { modality } = shown;
  const words = ["openmarigold", "predict", argument(shown.photo), "--output-dir", "out"];
  for (const [name, value] of Object.entries({ ...modality.model, ...shown.settings })) words.push(...flag(name, value));
  if (modality.stated.length) words.push("--modality", modality.name);
  if (!isDefault(shown.formats)) words.push("--format", ...shown.formats);
  return words.map(quoted);
}

function flag(name: string, value: Value): string[] {
  const word = name.replaceAll("_", "-");
  if (value === null) return [];
  if (typeof value === "boolean") return [value ? `--${word}` : `--no-${word}`];
  return [`--${word}`, String(value)];
}

/** A value as Python writes it. */
function literal(value: Value): string {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  return typeof value === "number" ? String(value) : JSON.stringify(value);
}

function keywords(settings: [string, Value][]): string[] {
  return settings.map(([name, value]) => {
    const isWhole = FRACTIONS.has(name) && Number.isInteger(value);
    return `${name}=${literal(value)}${isWhole ? ".0" : ""}`;
  });
}

export function pythonLines(shown: Shown): string {
  const { modality } = shown;
  const { checkpoint, ...options } = modality.model;
  const load = [
    ...(checkpoint === undefined ? [] : [literal(checkpoint)]),
    ...keywords(Object.entries(options)),
    ...(modality.stated.length ? [`modality=${literal(modality.name)}`] : []),
  ];
  const entries = Object.entries(shown.settings);
  const call = keywords(entries.filter(([name]) => !OUTPUT.has(name)));
  const output = keywords(entries.filter(([name]) => OUTPUT.has(name)));
  if (!isDefault(shown.formats)) output.unshift(`format=(${shown.formats.map((name) => `"${name}"`).join(", ")})`);
  const photo = literal(argument(shown.photo));
  const save = [`"out"`, literal(stemOf(shown.photo))];
  const lines = ["from openmarigold import Predictor"];
  if (output.length) {
    lines.push("from openmarigold.config import OutputConfig");
    save.push(`output=OutputConfig(${output.join(", ")})`);
  }
  if (shown.withNormals) lines.push("from openmarigold.geometry import normals_from_depth");
  lines.push("", `predictor = Predictor.load(${load.join(", ")})`);
  lines.push(`prediction = predictor(${[photo, ...call].join(", ")})`);
  if (shown.withNormals) {
    const shift = modality.invariance === "affine" ? ' + prediction.settings.get("shift", 0.1)' : "";
    lines.push("camera = prediction.camera", `depth = prediction.maps[${literal(modality.maps[0]!.name)}]${shift}`,
      "focal, center = (camera.fx, camera.fy), (camera.cx, camera.cy)",
      "normals, _ = normals_from_depth(depth, focal=focal, center=center)");
  } else {
    lines.push(`prediction.save(${save.join(", ")})`);
  }
  return lines.join("\n");
}
