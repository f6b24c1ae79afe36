// SPDX-License-Identifier: Apache-2.0
/** Photos of this session and what became of them. Nothing is kept when the page is closed. */

import { type ModalityFacts, predict, ServiceError, type Value } from "./api";
import { stemOf } from "./commands";
import { type Bytes, type MapArray, readGlb, readNpy, readZip, type SurfaceMesh } from "./readers";

const MOST_ENTRIES = 12;
const OWN_STEM = "photo"; // of the names that the service gives

export interface Photo {
  name: string;
  blob: Blob;
  /** Of the photo as the browser shows it. */
  url: string;
}

/** What a model said about a photo under some settings. */
export interface Result {
  key: string;
  modality: ModalityFacts;
  /** Maps and uncertainties by the end of their file names. */
  maps: Map<string, MapArray>;
  surface: SurfaceMesh | null;
  /** Why there is no surface. */
  surfaceProblem: string;
  seconds: number;
}

export interface Entry {
  photo: Photo;
  settings: Record<string, Value>;
  /** The newest one of each modality. */
  results: Map<string, Result>;
  /** By key, format and name. */
  files: Map<string, Map<string, Bytes>>;
  thumb: string;
}

/** Requests that differ in this alone have the same maps. */
function mapKey(request: Record<string, string>): string {
  const { color_map: _, ...rest } = request;
  return JSON.stringify(rest);
}

export class Session {
  readonly entries: Entry[] = [];

  add(photo: Photo): Entry {
    const entry: Entry = { photo, settings: {}, results: new Map(), files: new Map(), thumb: "" };
    this.entries.unshift(entry);
    for (const old of this.entries.splice(MOST_ENTRIES)) {
      URL.revokeObjectURL(old.photo.url);
      if (old.thumb) URL.revokeObjectURL(old.thumb);
    }
    return entry;
  }

  remove(entry: Entry): void {
    const index = this.entries.indexOf(entry);
    if (index >= 0) this.entries.splice(index, 1);
    URL.revokeObjectURL(entry.photo.url);
  }
}

/** Whether a result is what a request would give. */
export function isCurrent(result: Result | undefined, request: Record<string, string>): result is Result {
  return result !== undefined && result.key === mapKey(request);
}

/** Predicts what a request asks for and keeps it in the entry. */
export async function predictEntry(
  entry: Entry,
  modality: ModalityFacts,
  request: Record<string, string>,
  signal: AbortSignal,
): Promise<Result> {
  const started = performance.now();
  let formats = ["npy", "png", ...(modality.has_surface ? ["glb"] : [])];
  let files: Map<string, Bytes>;
  let surfaceProblem = "";
  try {
    files = await fetchFiles(entry, request, formats, signal);
  } catch (error) {
    // A panorama has maps but no mesh; the server says so.
    if (!modality.has_surface || !(error instanceof ServiceError) || error.status !== 400) throw error;
    formats = ["npy", "png"];
    files = await fetchFiles(entry, request, formats, signal);
    surfaceProblem = error.message;
  }
  const seconds = (performance.now() - started) / 1000;
  const maps = new Map<string, MapArray>();
  let surface: SurfaceMesh | null = null;
  for (const [name, content] of files) {
    const end = name.slice(stemOf(entry.photo.name).length + 1);
    if (name.endsWith(".npy")) maps.set(end.slice(0, -4), readNpy(content));
    else if (name.endsWith(".glb")) surface = readGlb(content);
  }
  for (const format of formats) entry.files.set(fileKey(request, format), ofFormat(files, format));
  const result: Result = { key: mapKey(request), modality, maps, surface, surfaceProblem, seconds };
  entry.results.set(modality.name, result);
  return result;
}

function fileKey(request: Record<string, string>, format: string): string {
  // Only pictures depend on colors.
  return `${format === "png" ? JSON.stringify(request) : mapKey(request)} ${format}`;
}

function ofFormat(files: Map<string, Bytes>, format: string): Map<string, Bytes> {
  return new Map([...files].filter(([name]) => name.endsWith(`.${format}`)));
}

/** The files of some formats, named after the photo. */
async function fetchFiles(
  entry: Entry,
  request: Record<string, string>,
  formats: string[],
  signal?: AbortSignal,
): Promise<Map<string, Bytes>> {
  const { blob, name: photo } = entry.photo;
  const archive = await predict(blob, photo, { ...request, format: formats.join() }, "application/zip", signal);
  const stem = stemOf(entry.photo.name);
  return new Map([...readZip(archive)].map(([name, content]) => [stem + name.slice(OWN_STEM.length), content]));
}

/** Files of a format that are here already. */
export function knownFiles(entry: Entry, request: Record<string, string>, format: string): Map<string, Bytes> | null {
  return entry.files.get(fileKey(request, format)) ?? null;
}

/** The files of a format; asks the service where they are not here. */
export async function filesOf(
  entry: Entry,
  modality: ModalityFacts,
  request: Record<string, string>,
  format: string,
): Promise<Map<string, Bytes>> {
  const known = knownFiles(entry, request, format);
  if (known !== null) return known;
  let files: Map<string, Bytes>;
  if (format === "json") {
    const content = await predict(entry.photo.blob, entry.photo.name, request, "application/json");
    files = new Map([[`${stemOf(entry.photo.name)}_${modality.name}.json`, content]]);
  } else {
    files = await fetchFiles(entry, request, [format]);
  }
  entry.files.set(fileKey(request, format), files);
  return files;
}
