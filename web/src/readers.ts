// SPDX-License-Identifier: Apache-2.0
/** Readers of what the service writes: stored zip archives, .npy, .glb. */

export type Bytes = Uint8Array<ArrayBuffer>;

/** The files of a zip archive without compression, by name, as parts of the archive. */
export function readZip(archive: Bytes): Map<string, Bytes> {
  const view = new DataView(archive.buffer, archive.byteOffset, archive.byteLength);
  let end = archive.length - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end -= 1;
  if (end < 0) throw new Error("the answer is no zip archive");
  const count = view.getUint16(end + 10, true);
  let at = view.getUint32(end + 16, true);
  const files = new Map<string, Bytes>();
  for (let index = 0; index < count; index += 1) {
    if (view.getUint32(at, true) !== 0x02014b50 || view.getUint16(at + 10, true) !== 0) {
      throw new Error("the zip archive is damaged or compressed");
    }
    const size = view.getUint32(at + 24, true);
    const nameLength = view.getUint16(at + 28, true);
    const start = view.getUint32(at + 42, true);
    const name = new TextDecoder().decode(archive.subarray(at + 46, at + 46 + nameLength));
    const data = start + 30 + view.getUint16(start + 26, true) + view.getUint16(start + 28, true);
    files.set(name, archive.subarray(data, data + size));
    at += 46 + nameLength + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
  }
  return files;
}

/** A map of float32: [height, width] or [height, width, channels]. */
export interface MapArray {
  height: number;
  width: number;
  channels: number;
  values: Float32Array;
}

export function readNpy(file: Bytes): MapArray {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  if (view.getUint32(0) !== 0x934e554d) throw new Error("this is no .npy file");
  const wide = file[6] !== 1;
  const start = (wide ? 12 : 10) + (wide ? view.getUint32(8, true) : view.getUint16(8, true));
  const header = new TextDecoder("latin1").decode(file.subarray(wide ? 12 : 10, start));
  const shape = (/'shape': \(([^)]*)\)/.exec(header)?.[1] ?? "")
    .split(",")
    .filter((part) => part.trim() !== "")
    .map(Number);
  if (!header.includes("'<f4'") || !header.includes("'fortran_order': False") || shape.length < 2) {
    throw new Error(`this array is not a map: ${header.trim()}`);
  }
  const [height = 0, width = 0, channels = 1] = shape;
  const values = new Float32Array(file.slice(start, start + 4 * height * width * channels).buffer);
  return { height, width, channels, values };
}

/** The pinhole camera that results state. */
export interface CameraFacts {
  fx: number;
  fy: number;
  cx: number;
  cy: number;
  width: number;
  height: number;
  fov: number;
  source: string;
  note?: string;
}

/** A mesh as the service writes it: x right, y up, z backward, the photo's camera at 0. */
export interface SurfaceMesh {
  positions: Float32Array;
  uv: Float32Array;
  triangles: Uint32Array;
  texture: Blob;
  camera: CameraFacts;
  /** "meters" or "relative". */
  unit: string;
  record: Record<string, unknown>;
}

interface Gltf {
  asset: { extras: { openmarigold: Record<string, unknown> } };
  accessors: { bufferView: number; count: number }[];
  bufferViews: { byteOffset: number; byteLength: number }[];
  meshes: { primitives: { attributes: { POSITION: number; TEXCOORD_0: number }; indices: number }[] }[];
  images: { bufferView: number }[];
}

export function readGlb(file: Bytes): SurfaceMesh {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  if (view.getUint32(0, true) !== 0x46546c67) throw new Error("this is no .glb file");
  const length = view.getUint32(12, true);
  const gltf = JSON.parse(new TextDecoder().decode(file.subarray(20, 20 + length))) as Gltf;
  const bytesOf = (index: number): Bytes => {
    const part = gltf.bufferViews[index]!;
    const start = 28 + length + part.byteOffset;
    return file.slice(start, start + part.byteLength);
  };
  const arrayOf = (accessor: number) => bytesOf(gltf.accessors[accessor]!.bufferView).buffer;
  const primitive = gltf.meshes[0]!.primitives[0]!;
  const record = gltf.asset.extras.openmarigold;
  return {
    positions: new Float32Array(arrayOf(primitive.attributes.POSITION)),
    uv: new Float32Array(arrayOf(primitive.attributes.TEXCOORD_0)),
    triangles: new Uint32Array(arrayOf(primitive.indices)),
    texture: new Blob([bytesOf(gltf.images[0]!.bufferView)], { type: "image/jpeg" }),
    camera: record.camera as CameraFacts,
    unit: String(record.length_unit),
    record,
  };
}
