// SPDX-License-Identifier: Apache-2.0
/** Settings of a prediction: their form, and their place in the address of the page. */

import type { Facts, ModalityFacts, Value } from "./api";
import { make } from "./dom";

/** Settings that the page shows, by their names of the command line. Others keep the server's values. */
interface Field {
  name: string;
  label: string;
  help: string;
  kind: "whole" | "share" | "flag" | "choice";
  min?: number;
  max?: number;
  step?: number;
  /** What an empty field stands for. */
  empty?: string;
  group: "main" | "more" | "space" | "files";
}

const FIELDS: Field[] = [
  { name: "ensemble_size", label: "Members", kind: "whole", min: 1, group: "main",
    help: "Predictions that are merged. Two or more also give the uncertainty; time grows with them." },
  { name: "num_inference_steps", label: "Steps", kind: "whole", min: 1, max: 1000, empty: "model's own", group: "main",
    help: "Denoising steps of each member." },
  { name: "processing_resolution", label: "Resolution", kind: "whole", min: 8, step: 8, empty: "model's own",
    group: "main", help: "Side that the networks see [px], a multiple of 8." },
  { name: "seed", label: "Seed", kind: "whole", min: 0, group: "more", help: "The same seed gives the same result." },
  { name: "ensemble_mirror", label: "Mirror members", kind: "choice", empty: "model's own", group: "more",
    help: "Every second member sees the photo mirrored." },
  { name: "tiles", label: "Tiles", kind: "choice", empty: "large photos", group: "more",
    help: "Predict overlapping parts too, for the detail of large photos." },
  { name: "max_points", label: "Points", kind: "whole", min: 1000, max: 4_000_000, step: 1000, group: "space",
    help: "Of the 3-D view and its files, at most." },
  { name: "drop_far", label: "Drop the farthest", kind: "share", min: 0, max: 0.9, step: 0.05, group: "space",
    help: "Share of the pixels that is left out, such as a sky." },
  { name: "inverted", label: "Also inverted (near is white)", kind: "flag", group: "files",
    help: "For ControlNet and its kin." },
  { name: "uncertainty_picture", label: "Also uncertainty as a picture", kind: "flag", group: "files", help: "" },
];
const GROUPS = { main: "", more: "Prediction", space: "3-D", files: "Pictures" };
/** Settings that are changed elsewhere on the page. */
const OTHERS = ["fov", "color_map"];
/** Where the page differs from the command line, for the sake of browsers. */
const PAGE_DEFAULTS: Record<string, Value> = { max_points: 200_000 };

export class Settings {
  private changed = new Map<string, Value>();
  private readonly listeners: ((name: string) => void)[] = [];

  constructor(
    private readonly facts: Facts,
    private readonly form: HTMLFormElement,
  ) {
    this.build();
  }

  onChange(listener: (name: string) => void): void {
    this.listeners.push(listener);
  }

  /** What the server uses where a request states nothing. */
  serverValue(name: string, modality: ModalityFacts): Value {
    return modality.call[name] ?? this.facts.defaults[name] ?? null;
  }

  value(name: string, modality: ModalityFacts): Value {
    return this.changed.get(name) ?? PAGE_DEFAULTS[name] ?? this.serverValue(name, modality);
  }

  /** Changes a setting; null leaves it to the server. */
  set(name: string, value: Value, quietly = false): void {
    const plain = PAGE_DEFAULTS[name] ?? this.serverValue(name, this.facts.modalities[0]!);
    if (value === null || value === plain) this.changed.delete(name);
    else this.changed.set(name, value);
    this.writeForm();
    if (!quietly) for (const listener of this.listeners) listener(name);
  }

  /** All changes, to come back to. */
  snapshot(): Record<string, Value> {
    return Object.fromEntries(this.changed);
  }

  restore(snapshot: Record<string, Value>): void {
    this.changed = new Map(Object.entries(snapshot));
    this.writeForm();
  }

  /** The fields of a request: what differs from the server's own values. */
  request(modality: ModalityFacts, several: boolean): Record<string, string> {
    const stated: Record<string, string> = several ? { modality: modality.name } : {};
    for (const name of this.names()) {
      const value = this.value(name, modality);
      if (value !== null && value !== this.serverValue(name, modality)) stated[name] = String(value);
    }
    return stated;
  }

  /** Settings that differ from the defaults of the command line, by name. */
  forCommand(modality: ModalityFacts): Record<string, Value> {
    const stated: Record<string, Value> = { ...modality.call };
    for (const name of this.names()) {
      const value = this.value(name, modality);
      if (value === (this.facts.defaults[name] ?? null)) delete stated[name];
      else stated[name] = value;
    }
    if (!modality.has_surface) for (const name of ["max_points", "drop_far"]) delete stated[name];
    return stated;
  }

  private names(): string[] {
    return [...FIELDS.map((field) => field.name), ...OTHERS];
  }

  /** Reads changes from the address; unknown names and values that do not fit are left out. */
  readFragment(fragment: string): void {
    this.changed = new Map();
    for (const [name, text] of new URLSearchParams(fragment)) {
      const field = FIELDS.find((one) => one.name === name);
      if (field?.kind === "flag" || field?.kind === "choice") {
        if (text === "true" || text === "false") this.changed.set(name, text === "true");
      } else if (field || name === "fov") {
        if (this.fits(Number(text), field) && text.trim() !== "") this.changed.set(name, Number(text));
      } else if (name === "color_map" && this.facts.color_maps.includes(text)) {
        this.changed.set(name, text);
      }
    }
    this.writeForm();
  }

  /** Whether the form would take a number; without a field, whether it is a field of view. */
  private fits(number: number, field: Field | undefined): boolean {
    if (!field) return number >= 1 && number <= 170;
    const { kind, min = 0, step = 1 } = field;
    const isWhole = kind !== "whole" || (Number.isSafeInteger(number) && (number - min) % step === 0);
    return number >= min && number <= (this.most(field) ?? Infinity) && isWhole;
  }

  private most(field: Field): number | undefined {
    const { max_resolution, max_passes } = this.facts.limits;
    return { processing_resolution: max_resolution, ensemble_size: max_passes }[field.name] ?? field.max;
  }

  fragment(more: Record<string, string>): string {
    const words = new URLSearchParams();
    for (const [name, value] of this.changed) words.set(name, String(value));
    for (const [name, value] of Object.entries(more)) words.set(name, value);
    return words.toString();
  }

  private build(): void {
    const more = make("details", { class: "more-settings" }, make("summary", {}, "More settings"));
    for (const [group, title] of Object.entries(GROUPS)) {
      const fields = FIELDS.filter((field) => field.group === group && field.name in this.facts.defaults);
      const box = make("fieldset", { class: `group group-${group}` }, make("legend", title ? {} : { class: "sr" }, title || "Prediction"));
      for (const field of fields) box.append(this.control(field));
      (group === "main" ? this.form : more).append(box);
    }
    more.append(make("button", { type: "button", class: "link", id: "reset-settings", onclick: () => this.reset() }, "Reset all"));
    this.form.append(more, make("button", { type: "submit", class: "button primary", id: "predict", hidden: true }, "Predict again"));
    this.writeForm();
  }

  private reset(): void {
    this.changed = new Map();
    this.writeForm();
    for (const listener of this.listeners) listener("");
  }

  private control(field: Field): HTMLElement {
    const id = `setting-${field.name}`;
    const help = field.help ? make("small", { id: `${id}-help` }, field.help) : null;
    const described = help ? { "aria-describedby": `${id}-help` } : {};
    const common = { id, name: field.name, ...described };
    if (field.kind === "flag") {
      const box = make("input", { type: "checkbox", ...common });
      box.addEventListener("change", () => this.set(field.name, box.checked));
      return make("div", { class: "row flag" }, box, make("label", { for: id }, field.label), help);
    }
    const label = make("label", { for: id }, field.label);
    if (field.kind === "choice") {
      const list = make("select", common,
        make("option", { value: "" }, field.empty ?? ""), make("option", { value: "true" }, "yes"),
        make("option", { value: "false" }, "no"));
      list.addEventListener("change", () => this.set(field.name, list.value === "" ? null : list.value === "true"));
      return make("div", { class: "row" }, label, list, help);
    }
    if (field.kind === "share") {
      const shown = make("output", { for: id });
      const range = make("input", { type: "range", min: field.min, max: field.max, step: field.step, ...common });
      const write = () => (shown.textContent = `${Math.round(100 * Number(range.value))} %`);
      range.addEventListener("input", write);
      range.addEventListener("change", () => this.set(field.name, Number(range.value)));
      return make("div", { class: "row" }, label, make("span", { class: "range" }, range, shown), help);
    }
    const input = make("input", { type: "number", inputmode: "numeric", min: field.min, max: this.most(field),
      step: field.step ?? 1, placeholder: field.empty, ...common });
    input.addEventListener("change", () => {
      if (!input.reportValidity()) return;
      this.set(field.name, input.value === "" ? null : Number(input.value));
    });
    return make("div", { class: "row" }, label, input, help);
  }

  private writeForm(): void {
    const first = this.facts.modalities[0];
    if (first === undefined) return;
    for (const field of FIELDS) {
      const input = this.form.elements.namedItem(field.name);
      const value = this.value(field.name, first);
      if (input instanceof HTMLSelectElement) {
        input.value = value === null ? "" : String(value);
      } else if (input instanceof HTMLInputElement) {
        if (input.type === "checkbox") input.checked = value === true;
        else input.value = value === null ? "" : String(value);
        const shown = input.nextElementSibling;
        if (shown instanceof HTMLOutputElement) shown.textContent = `${Math.round(100 * Number(value))} %`;
      }
    }
  }
}
