// SPDX-License-Identifier: Apache-2.0
/** The controls of the 3-D view. three.js is loaded when it is first looked at. */

import type { Value } from "./api";
import { byId, say, toast } from "./dom";
import type { Result } from "./session";
import type { Length, Space } from "./space";

export class SpacePanel {
  private space: Space | null = null;
  private shown: Result | null = null;
  private photo = "";
  private metersPerUnit: number | null = null;
  private length: Length = { value: 0, count: 0 };
  private readonly host = byId("space");

  constructor(private readonly setFov: (fov: Value) => void) {
    for (const input of document.querySelectorAll<HTMLInputElement>("input[name=look]")) {
      input.addEventListener("change", () => this.applyLook());
    }
    byId("size").addEventListener("input", () => this.applyLook());
    for (const id of ["near", "far"]) byId(id).addEventListener("input", () => this.applyCuts(id));
    const fov = byId<HTMLInputElement>("fov");
    fov.addEventListener("input", () => {
      this.space?.setFov(Number(fov.value));
      byId("fov-value").textContent = `${fov.value}°`;
    });
    fov.addEventListener("change", () => this.setFov(Number(fov.value)));
    byId("fov-reset").addEventListener("click", () => this.setFov(null));
    byId("front").addEventListener("click", () => this.space?.front());
    this.toggle("measure", (on) => {
      this.space?.setMeasuring(on);
      if (on) say("Choose two points of the 3-D view.");
    });
    this.toggle("turn", (on) => this.space?.setTurning(on));
    byId("clear").addEventListener("click", () => this.space?.clearMarks());
    byId("known-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.setScale();
    });
    // Only one of the small windows at a time, and none after a click elsewhere.
    document.addEventListener("click", (event) => {
      const more = document.querySelector<HTMLDetailsElement>("details.more[open]");
      if (more && event.target instanceof Node && !more.contains(event.target)) more.open = false;
    });
    document.addEventListener("keydown", (event) => {
      const more = document.querySelector<HTMLDetailsElement>("details.more[open]");
      if (event.key !== "Escape" || !more) return;
      more.open = false;
      more.querySelector("summary")?.focus();
    });
  }

  async show(result: Result, photo: string): Promise<void> {
    const message = byId("space-message");
    message.hidden = result.surface !== null;
    if (result.surface === null) {
      message.textContent = result.surfaceProblem || "This result has no surface.";
      this.shown = null;
      return;
    }
    if (this.shown === result) return;
    const samePhoto = this.photo === photo && this.shown !== null;
    [this.shown, this.photo] = [result, photo];
    if (!samePhoto || this.metersPerUnit !== 1) this.metersPerUnit = result.surface.unit === "meters" ? 1 : null;
    if (!(await this.load())) return;
    if (this.space === null || this.shown !== result) return;
    await this.space.show(result.surface, samePhoto);
    this.showCamera(result);
    this.applyLook();
    this.applyCuts("");
    this.tell({ value: 0, count: 0 });
    this.host.dataset.ready = "true";
  }

  private async load(): Promise<boolean> {
    if (this.space !== null) return true;
    let problem = "The part of the page that draws 3-D cannot be loaded; is the server still running?";
    try {
      const { Space } = await import("./space");
      problem = "3-D needs WebGL 2, which this browser does not offer. The files hold the mesh.";
      this.space ??= new Space(this.host, byId("overlay") as unknown as SVGSVGElement);
    } catch (error) {
      console.error(error);
      const message = byId("space-message");
      message.textContent = problem;
      message.hidden = false;
      return false;
    }
    this.space.onLength = (length) => this.tell(length);
    this.space.label = (value) => this.lengthText(value);
    return true;
  }

  private toggle(id: string, change: (on: boolean) => void): void {
    const button = byId(id);
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      change(on);
    });
  }

  private applyLook(): void {
    const asPoints = document.querySelector<HTMLInputElement>("input[name=look]:checked")?.value === "points";
    byId("size-field").hidden = !asPoints;
    this.space?.setPoints(asPoints, Number(byId<HTMLInputElement>("size").value));
  }

  private applyCuts(moved: string): void {
    const [near, far] = [byId<HTMLInputElement>("near"), byId<HTMLInputElement>("far")];
    if (Number(near.value) >= Number(far.value)) {
      if (moved === "near") near.value = String(Number(far.value) - 1);
      else far.value = String(Number(near.value) + 1);
    }
    const [low, high] = [Number(near.value) / 100, Number(far.value) / 100];
    const depths = this.space?.setCuts(low, high);
    if (!depths) return;
    byId("near-value").textContent = low > 0 ? this.lengthText(depths[0]) : "off";
    byId("far-value").textContent = high < 1 ? this.lengthText(depths[1]) : "off";
  }

  private showCamera(result: Result): void {
    const { camera } = result.surface!;
    const isFree = camera.source === "assumed" || camera.source === "fov";
    byId("fov-field").hidden = !isFree;
    const fov = byId<HTMLInputElement>("fov");
    fov.value = String(Math.round(camera.fov));
    byId("fov-value").textContent = `${camera.fov.toFixed(isFree ? 0 : 1)}°`;
    byId("fov-reset").hidden = camera.source !== "fov";
    const degrees = `${camera.fov.toFixed(1)}°`;
    const notes: Record<string, string> = {
      assumed: "The camera is not known, so 55° are assumed. Move the slider until right angles look right.",
      fov: "As you set it. The files have it too.",
      exif: `Field of view ${degrees}, from the photo's metadata.`,
      estimated: `Field of view ${degrees}, estimated from depth and normals.`,
    };
    byId("fov-note").textContent = notes[camera.source] ?? `Field of view ${degrees}, as given.`;
  }

  private lengthText(value: number): string {
    if (this.metersPerUnit === null) return `${value.toPrecision(3)} units`;
    const meters = value * this.metersPerUnit;
    return meters < 1 ? `${(100 * meters).toPrecision(3)} cm` : `${meters.toPrecision(3)} m`;
  }

  private tell(length: Length): void {
    this.length = length;
    const box = byId("measured");
    box.hidden = length.count === 0;
    if (length.count === 0) return;
    const done = length.count === 2;
    byId("length").textContent = done ? this.lengthText(length.value) : "Now the second point";
    byId("known-form").hidden = !done || this.shown?.surface?.unit === "meters";
    byId("known-label").textContent = this.metersPerUnit === null ? "It is" : "No, it is";
    say(done ? `Length: ${this.lengthText(length.value)}` : "First point set. Choose the second one.");
  }

  private setScale(): void {
    const known = Number(byId<HTMLInputElement>("known").value);
    if (!(known > 0) || this.length.count !== 2) {
      toast("Measure a line first, and give its true length in meters, above 0.");
      return;
    }
    this.metersPerUnit = known / this.length.value;
    this.tell(this.length);
    this.applyCuts("");
    this.space?.refresh();
  }
}
