// SPDX-License-Identifier: Apache-2.0
/** The service: what it offers, and predictions. */

export interface MapFacts {
  name: string;
  file_name: string;
  channels: number;
  range: [number | null, number | null];
  unit: string;
  space: string;
}

export type Value = boolean | number | string | null;

export interface ModalityFacts {
  name: string;
  title: string;
  checkpoint: string;
  /** What the server was asked to predict; empty where the checkpoint decides. */
  stated: string[];
  /** Settings of the model that are not the default ones. */
  model: Record<string, Value>;
  /** Settings of calls that the server's command line changed. */
  call: Record<string, Value>;
  invariance: string;
  space: string;
  has_surface: boolean;
  uncertainties: string[];
  maps: MapFacts[];
}

export interface Facts {
  version: string;
  modalities: ModalityFacts[];
  /** Of the command line, by name. */
  defaults: Record<string, Value>;
  formats: string[];
  /** Names of color maps that files can have here. */
  color_maps: string[];
  limits: { max_bytes: number; max_pixels: number; max_resolution: number; max_passes: number };
  examples: string[];
}

/** An answer that is no result: one line for people. */
export class ServiceError extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message);
  }
}

const TOKEN_KEY = "openmarigold-token";

export function setToken(token: string): void {
  sessionStorage.setItem(TOKEN_KEY, token);
}

function headers(more: Record<string, string> = {}): Record<string, string> {
  const token = sessionStorage.getItem(TOKEN_KEY) ?? "";
  // No other characters may stand in a header; without one, the server asks again.
  return /^[\x21-\x7e]+$/.test(token) ? { ...more, authorization: `Bearer ${token}` } : more;
}

async function checked(answer: Response): Promise<Response> {
  if (answer.ok) return answer;
  let message = `the server answered with status ${answer.status}`;
  try {
    const told = (await answer.json()) as { error?: unknown };
    if (typeof told.error === "string") message = told.error;
  } catch {
    // not of this service: a proxy, for instance
  }
  throw new ServiceError(message, answer.status);
}

/** What a request gives; where the connection fails, a ServiceError with a line for people. */
async function connected<T>(waiting: Promise<T>): Promise<T> {
  try {
    return await waiting;
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ServiceError("the server cannot be reached; is it still running?", 0);
  }
}

function reach(path: string, init: RequestInit): Promise<Response> {
  return connected(fetch(path, init));
}

/** Waits until the models are loaded. Throws a ServiceError with the reason if they cannot be. */
export async function untilReady(tell: () => void): Promise<void> {
  for (;;) {
    const answer = await reach("readyz", {});
    if (answer.ok) return;
    const told = (await answer.json().catch(() => ({}))) as { error?: string };
    if (told.error) throw new ServiceError(told.error, answer.status);
    tell();
    await new Promise((done) => setTimeout(done, 300));
  }
}

export async function fetchFacts(): Promise<Facts> {
  return (await (await checked(await reach("v1/page", { headers: headers() }))).json()) as Facts;
}

/** The colors of a map of the server: three bytes each, the lowest value first. */
export async function fetchColors(name: string): Promise<Uint8Array> {
  const path = `v1/page/colors/${encodeURIComponent(name)}`;
  return new Uint8Array(await (await checked(await reach(path, { headers: headers() }))).arrayBuffer());
}

/** The body of an answer of /v1/predict. A busy server is asked again when it says. */
export async function predict(
  photo: Blob,
  photoName: string,
  settings: Record<string, string>,
  accept: string,
  signal?: AbortSignal,
): Promise<Uint8Array<ArrayBuffer>> {
  const body = new FormData();
  body.append("photo", photo, `photo${suffixOf(photoName)}`);
  for (const [name, value] of Object.entries(settings)) body.append(name, value);
  const init: RequestInit = { method: "POST", body, headers: headers({ accept }) };
  if (signal) init.signal = signal;
  for (;;) {
    const answer = await reach("v1/predict", init);
    const wait = Number(answer.headers.get("retry-after"));
    if (answer.status !== 429 || !(wait > 0)) return new Uint8Array(await connected((await checked(answer)).arrayBuffer()));
    await new Promise((done) => setTimeout(done, 1000 * wait));
    signal?.throwIfAborted();
  }
}

/** Some kinds of photos are told by the end of the name. */
function suffixOf(name: string): string {
  return /\.[A-Za-z0-9]{1,8}$/.exec(name)?.[0] ?? "";
}
