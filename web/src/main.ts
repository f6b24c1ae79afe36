// SPDX-License-Identifier: Apache-2.0
/** The page: photos in, requests to the service, views of its answers. */

import { type Facts, fetchFacts, type ModalityFacts, ServiceError, setToken, untilReady } from "./api";
import { clock, takePhoto } from "./camera";
import { ColorMaps } from "./colors";
import { Compare } from "./compare";
import { byId, make, say, toast } from "./dom";
import { listenForCopies, showFiles, showLines } from "./files";
import { type Entry, isCurrent, predictEntry, type Result, Session } from "./session";
import { Settings } from "./settings";
import { SpacePanel } from "./space_panel";
import { startTheme } from "./theme";
import { Tabs, type View, viewsOf } from "./views";

const SLOW_S = 3; // from here on a change of settings waits for a click
const UNCERTAINTY_COLORS = "gray";

class Page {
  private readonly session = new Session();
  private readonly settings: Settings;
  private readonly colorMaps: ColorMaps;
  private readonly compare: Compare;
  private readonly spacePanel: SpacePanel;
  private readonly tabs: Tabs;
  private entry: Entry | null = null;
  private running: AbortController | null = null;
  /** Colors of this page alone; empty where the setting `color_map` counts. */
  private ownColors = "";
  private uncertaintyColors = UNCERTAINTY_COLORS;
  private lastSeconds = 0;

  constructor(private readonly facts: Facts) {
    this.settings = new Settings(facts, byId<HTMLFormElement>("settings"));
    this.colorMaps = new ColorMaps(facts.color_maps);
    this.compare = new Compare(this.colorMaps, (name) => this.chooseColors(name));
    this.spacePanel = new SpacePanel((fov) => this.settings.set("fov", fov));
    this.tabs = new Tabs((view) => this.showView(view));
    this.settings.onChange((name) => this.onSetting(name));
    byId("settings").addEventListener("submit", (event) => {
      event.preventDefault();
      void this.predict();
    });
    listenForCopies(() => window.location.href);
    this.readAddress();
    window.addEventListener("hashchange", () => {
      this.readAddress();
      void this.predict();
    });
  }

  // ------------------------------------------------------------------------------------------------------------ photos

  /** Takes a photo and predicts it. */
  async open(blob: Blob, name: string): Promise<void> {
    if (blob.size > this.facts.limits.max_bytes) {
      toast(`The photo has ${Math.round(blob.size / 1e6)} MB; this server takes ${Math.round(this.facts.limits.max_bytes / 1e6)} MB.`);
      return;
    }
    let kept: Blob;
    try {
      kept = new Blob([await blob.arrayBuffer()], { type: blob.type }); // also when the file changes or goes
    } catch {
      toast(`${name} cannot be read; is it a file, and still there?`);
      return;
    }
    const before = this.entry;
    this.entry = this.session.add({ name, blob: kept, url: URL.createObjectURL(kept) });
    this.entry.settings = this.settings.snapshot();
    await this.tryEntry(this.entry, before);
  }

  private async showEntry(entry: Entry): Promise<void> {
    const before = this.entry;
    this.entry = entry;
    this.settings.restore(entry.settings);
    this.writeAddress();
    await this.tryEntry(entry, before);
  }

  /** Predicts the chosen photo; one that fails and has shown nothing yet is dropped. */
  private async tryEntry(entry: Entry, before: Entry | null): Promise<void> {
    if ((await this.predict()) !== "failed" || entry.results.size > 0) return;
    this.session.remove(entry);
    if (this.entry !== entry) return; // another photo was given meanwhile
    this.entry = before;
    if (before === null) return;
    this.showView(this.tabs.current);
    await this.showHistory(before);
  }

  // ---------------------------------------------------------------------------------------------------------- requests

  private request(modality: ModalityFacts): Record<string, string> {
    return this.settings.request(modality, this.facts.modalities.length > 1);
  }

  private hasEnsemble(modality: ModalityFacts): boolean {
    return Number(this.settings.value("ensemble_size", modality)) > 1;
  }

  private chosenView(): View {
    const views = viewsOf(this.facts, (modality) => this.hasEnsemble(modality));
    this.tabs.show(views, this.tabs.current?.id ?? this.wantedView);
    return this.tabs.current;
  }

  private wantedView = "";

  /** Asks for what the chosen view needs, unless it is here, and shows it. */
  private async predict(): Promise<"done" | "failed" | "ended"> {
    const entry = this.entry;
    if (entry === null) return "done";
    this.running?.abort();
    const view = this.chosenView();
    this.writeAddress();
    const request = this.request(view.modality);
    const known = entry.results.get(view.modality.name);
    byId("predict").hidden = true;
    if (isCurrent(known, request)) {
      await this.showResult(entry, known, view);
      say(outcome(entry, known));
      await this.showHistory(entry);
      return "done";
    }
    const running = (this.running = new AbortController());
    this.setBusy(true);
    say(`Predicting ${view.modality.title} of ${entry.photo.name} …`);
    try {
      const result = await predictEntry(entry, view.modality, request, running.signal);
      if (running.signal.aborted) return "ended";
      this.lastSeconds = result.seconds;
      entry.settings = this.settings.snapshot();
      document.documentElement.dataset.state = "work";
      byId("work").hidden = false;
      byId("welcome").hidden = true;
      await this.showResult(entry, result, view);
      say(outcome(entry, result));
      await this.showHistory(entry);
      return "done";
    } catch (error) {
      if (running.signal.aborted) return "ended";
      const isRefused = error instanceof ServiceError && error.status === 401;
      if (isRefused && (await askForToken(error.message))) return this.predict();
      say("");
      report(error);
      return "failed";
    } finally {
      if (this.running === running) this.setBusy(false);
    }
  }

  private setBusy(busy: boolean): void {
    byId("progress").hidden = !busy;
    byId("panel").setAttribute("aria-busy", String(busy));
    document.documentElement.classList.toggle("busy", busy);
  }

  private onSetting(name: string): void {
    this.writeAddress();
    if (this.entry === null) return;
    if (name === "color_map") return this.showView(this.tabs.current);
    if (this.lastSeconds < SLOW_S) {
      void this.predict();
      return;
    }
    byId("predict").hidden = false;
    say("The settings have changed. Predict again to see them.");
    this.showTexts(this.tabs.current);
  }

  // ------------------------------------------------------------------------------------------------------------- views

  private showView(view: View): void {
    this.writeAddress();
    const result = this.entry?.results.get(view.modality.name);
    if (this.entry && isCurrent(result, this.request(view.modality))) {
      say(outcome(this.entry, result));
      void this.showResult(this.entry, result, view).catch(report);
    } else {
      void this.predict();
    }
  }

  private async showResult(entry: Entry, result: Result, view: View): Promise<void> {
    const isSpace = view.kind === "space";
    byId("compare").hidden = isSpace;
    byId("space").hidden = !isSpace;
    byId("map-tools").hidden = isSpace;
    byId("space-tools").hidden = !isSpace;
    if (isSpace) void this.spacePanel.show(result, entry.photo.url).catch(report);
    else if (view.kind === "normals" && result.surface === null) {
      byId("compare").hidden = true;
      byId("space").hidden = false;
      void this.spacePanel.show(result, entry.photo.url).catch(report);
    } else await this.compare.show(entry, result, view, this.colorsOf(view));
    this.showTexts(view);
  }

  private showTexts(view: View): void {
    if (this.entry === null) return;
    const request = this.request(view.modality);
    showFiles({ facts: this.facts, entry: this.entry, view, request });
    showLines({
      modality: view.modality,
      photo: this.entry.photo.name,
      settings: this.settings.forCommand(view.modality),
      formats: view.modality.has_surface ? ["npy", "png", "glb"] : ["npy", "png"],
      withNormals: view.kind === "normals",
    });
  }

  private colorsOf(view: View): string {
    if (view.kind === "uncertainty") return this.uncertaintyColors;
    return this.ownColors || String(this.settings.value("color_map", view.modality));
  }

  private chooseColors(name: string): void {
    if (this.tabs.current.kind === "uncertainty") {
      this.uncertaintyColors = name;
    } else {
      const isKnown = this.facts.color_maps.includes(name);
      this.ownColors = isKnown ? "" : name;
      if (isKnown) this.settings.set("color_map", name, true);
    }
    this.showView(this.tabs.current);
  }

  private async showHistory(entry: Entry): Promise<void> {
    if (!entry.thumb && this.tabs.current.kind === "map") entry.thumb = await this.compare.thumbnail();
    const items = this.session.entries.map((one) => {
      const picture = make("img", { src: one.thumb || one.photo.url, alt: "" });
      const button = make("button", { type: "button", class: "history-item", "aria-label": `Show ${one.photo.name} again`,
        title: one.photo.name, onclick: () => void this.showEntry(one) }, picture);
      if (one === this.entry) button.setAttribute("aria-current", "true");
      return make("li", {}, button);
    });
    byId("history").hidden = items.length < 2;
    byId("history-list").replaceChildren(...items);
  }

  // ----------------------------------------------------------------------------------------------------------- address

  private readAddress(): void {
    const fragment = window.location.hash.slice(1);
    const words = new URLSearchParams(fragment);
    this.settings.readFragment(fragment);
    const colors = words.get("colors") ?? "";
    this.ownColors = this.colorMaps.has(colors) ? colors : "";
    this.wantedView = words.get("view") ?? "";
    const views = viewsOf(this.facts, (modality) => this.hasEnsemble(modality));
    this.tabs.show(views, this.wantedView);
  }

  private writeAddress(): void {
    const first = viewsOf(this.facts, () => false)[0]?.id;
    const view = this.tabs.current.id;
    const words = this.settings.fragment({
      ...(view !== first ? { view } : {}),
      ...(this.ownColors ? { colors: this.ownColors } : {}),
    });
    history.replaceState(null, "", words ? `#${words}` : window.location.pathname);
  }
}

function outcome(entry: Entry, result: Result): string {
  const title = result.modality.title.replace(/^./, (letter) => letter.toUpperCase());
  return `${title} of ${entry.photo.name} in ${result.seconds.toFixed(result.seconds < 10 ? 2 : 0)} s`;
}

function report(error: unknown): void {
  toast(error instanceof Error ? error.message : String(error));
}

// ----------------------------------------------------------------------------------------------------------- photos in

function listenForPhotos(open: (blob: Blob, name: string) => void): void {
  const input = byId<HTMLInputElement>("file");
  for (const button of document.querySelectorAll("[data-do=choose]")) {
    button.addEventListener("click", () => input.click());
  }
  input.addEventListener("change", () => {
    const file = input.files?.[0];
    if (file) open(file, file.name);
    input.value = "";
  });
  for (const button of document.querySelectorAll("[data-do=camera]")) {
    button.addEventListener("click", async () => {
      const photo = await takePhoto();
      if (photo) open(photo, photo.name);
    });
  }
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])][0];
    if (!file) return;
    event.preventDefault();
    // Pictures that were copied have one and the same name.
    const isPlain = /^image\.\w+$/.test(file.name);
    open(file, isPlain ? `pasted-${clock()}.${file.name.split(".")[1]}` : file.name);
  });
  let depth = 0;
  const hasFiles = (event: DragEvent) => event.dataTransfer?.types.includes("Files") === true;
  const veil = (on: boolean) => document.documentElement.classList.toggle("dropping", on);
  document.addEventListener("dragenter", (event) => {
    if (hasFiles(event)) veil((depth += 1) > 0);
  });
  document.addEventListener("dragleave", (event) => {
    if (hasFiles(event)) veil((depth -= 1) > 0);
  });
  document.addEventListener("dragover", (event) => {
    if (hasFiles(event)) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    veil((depth = 0) > 0);
    const files = [...(event.dataTransfer?.files ?? [])];
    if (files.length > 1) toast("One photo at a time is shown; the others were left out.", 6);
    if (files[0]) open(files[0], files[0].name);
  });
}

function showExamples(names: string[], open: (blob: Blob, name: string) => void): void {
  byId("examples").hidden = names.length === 0;
  byId("example-list").append(
    ...names.map((name) => {
      const path = `page/examples/${name}`;
      const title = name.replace(/\.\w+$/, "").replaceAll("-", " ");
      const button = make("button", { type: "button", class: "example", "data-example": name },
        make("img", { src: path, alt: "", loading: "lazy" }), make("span", {}, title));
      button.addEventListener("click", async () => {
        const answer = await fetch(path).catch(() => null);
        if (answer?.ok) open(await answer.blob(), name);
        else toast("The example cannot be loaded; is the server still running?");
      });
      return make("li", {}, button);
    }),
  );
}

/** Whether a token was given. */
function askForToken(message: string): Promise<boolean> {
  const dialog = byId<HTMLDialogElement>("token-dialog");
  const input = byId<HTMLInputElement>("token");
  if (input.value) toast(message);
  input.value = "";
  dialog.showModal();
  return new Promise((done) => {
    // Also when it is closed by Escape.
    dialog.addEventListener("close", () => {
      const token = input.value.trim();
      if (token) setToken(token);
      done(token !== "");
    }, { once: true });
  });
}

async function connect(): Promise<Facts> {
  for (;;) {
    try {
      await untilReady(() => say("The model is being loaded …"));
      const facts = await fetchFacts();
      if (facts.modalities.length) {
        say("");
        return facts;
      }
    } catch (error) {
      if (!(error instanceof ServiceError) || error.status !== 401) throw error;
      await askForToken(error.message);
    }
  }
}

async function start(): Promise<void> {
  startTheme();
  // Photos may come before the server is ready.
  let page: Page | null = null;
  let waiting: [Blob, string] | null = null;
  const open = (blob: Blob, name: string) => {
    if (page) void page.open(blob, name);
    else waiting = [blob, name];
  };
  listenForPhotos(open);
  try {
    const facts = await connect();
    showExamples(facts.examples, open);
    page = new Page(facts);
    document.documentElement.dataset.ready = "true";
    if (waiting) open(...(waiting as [Blob, string]));
  } catch (error) {
    toast(error instanceof Error ? error.message : String(error), 600);
    say("");
  }
}

void start();
