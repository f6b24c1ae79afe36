// SPDX-License-Identifier: Apache-2.0
/** The card of files, and the lines that make them elsewhere. */

import type { Facts } from "./api";
import { commandWords, pythonLines, type Shown, stemOf } from "./commands";
import { byId, copy, download, make, say, sizeText, toast } from "./dom";
import { type Entry, filesOf, knownFiles } from "./session";
import type { Bytes } from "./readers";
import type { View } from "./views";

const MEANING: Record<string, string> = {
  npy: "numbers, float32",
  png: "picture",
  npz: "all numbers and how they were made",
  exr: "all numbers, for compositing",
  ply: "points",
  glb: "mesh with the photo on it",
  json: "sizes, ranges and how it was made",
};

export interface Source {
  facts: Facts;
  entry: Entry;
  view: View;
  request: Record<string, string>;
}

export function showFiles(source: Source): void {
  const { entry, view, facts, request } = source;
  const formats = facts.formats.filter((name) => view.modality.has_surface || (name !== "ply" && name !== "glb"));
  const rows: HTMLLIElement[] = [];
  for (const format of [...formats, "json"]) {
    const known = knownFiles(entry, request, format) ?? staleNames(source, format);
    const plain = `${stemOf(entry.photo.name)}_${view.modality.name}.${format}`;
    for (const [name, content] of known ?? [[plain, null]]) rows.push(row(source, format, name, content));
  }
  byId("files").replaceChildren(...rows);
}

/** Names of files that are to be made again, with other colors. */
function staleNames({ facts, entry, view }: Source, format: string): Map<string, null> | null {
  if (format !== "png") return null;
  // Requests name the modality where the server has several.
  const stated = facts.modalities.length > 1 ? `"modality":${JSON.stringify(view.modality.name)}` : "";
  const found = [...entry.files].reverse().find(([key]) => key.endsWith(" png") && key.includes(stated));
  return found === undefined ? null : new Map([...found[1].keys()].map((name) => [name, null]));
}

/** What a file is; of a picture, how many bits it has. */
function meaning(format: string, content: Bytes | null): string {
  if (format === "png" && content !== null) return content[24] === 16 ? "picture for tools, 16 bits" : "picture in colors";
  return MEANING[format] ?? format;
}

function row(source: Source, format: string, name: string, known: Bytes | null): HTMLLIElement {
  const { entry, view, request } = source;
  const note = make("span", { class: "file-size" }, known === null ? "" : sizeText(known.length));
  const button = make("button", { type: "button", class: "file", "data-file": name },
    make("span", { class: "file-name" }, name), make("span", { class: "file-note" }, meaning(format, known)), note);
  button.addEventListener("click", async () => {
    button.disabled = true;
    if (known === null) note.textContent = "…";
    try {
      const files = await filesOf(entry, view.modality, request, format);
      const content = files.get(name) ?? [...files.values()][0];
      if (content === undefined) throw new Error(`${name} is not among the files`);
      download(name, content);
      note.textContent = sizeText(content.length);
      say(`${name} is downloaded.`);
    } catch (error) {
      note.textContent = "";
      toast(error instanceof Error ? error.message : String(error));
    } finally {
      button.disabled = false;
    }
  });
  return make("li", {}, button);
}

export function showLines(shown: Shown): void {
  // Lines break between words, not after the hyphens of a flag.
  const words = commandWords(shown).flatMap((word) => [" ", make("span", { class: "word" }, word)]);
  byId("cli").replaceChildren(...words.slice(1));
  byId("python").textContent = pythonLines(shown);
}

/** Buttons that copy the text of an element. */
export function listenForCopies(permalink: () => string): void {
  const done = async (button: HTMLElement, text: string) => {
    const worked = await copy(text);
    const label = button.textContent;
    button.textContent = worked ? "Copied" : "Not allowed";
    say(worked ? "Copied." : "This browser did not allow to copy.");
    window.setTimeout(() => (button.textContent = label), 1500);
  };
  for (const button of document.querySelectorAll<HTMLElement>("[data-copy]")) {
    button.addEventListener("click", () => void done(button, byId(button.dataset.copy!).textContent ?? ""));
  }
  byId("permalink").addEventListener("click", (event) => void done(event.currentTarget as HTMLElement, permalink()));
}
