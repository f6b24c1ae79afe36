// SPDX-License-Identifier: Apache-2.0
/** The tabs: one for each map, its uncertainty, and what follows from a surface. */

import type { Facts, MapFacts, ModalityFacts } from "./api";
import { byId, make } from "./dom";

export interface View {
  id: string;
  title: string;
  modality: ModalityFacts;
  kind: "map" | "uncertainty" | "normals" | "space";
  /** Of a map; null for what has no description of its own. */
  map: MapFacts | null;
  /** The end of the names of its file. */
  file: string;
}

function title(name: string): string {
  return name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");
}

/** The views of what the server offers; uncertainties where there are ensembles. */
export function viewsOf(facts: Facts, hasEnsemble: (modality: ModalityFacts) => boolean): View[] {
  return facts.modalities.flatMap((modality) => {
    const views: View[] = modality.maps.map((map) => ({
      id: `${modality.name}/${map.file_name}`, title: title(map.name), modality, kind: "map", map, file: map.file_name,
    }));
    if (modality.has_surface) {
      views.push({ id: `${modality.name}/3d`, title: "3-D", modality, kind: "space", map: null, file: "" });
      views.push({
        id: `${modality.name}/surface-normals`, title: `Normals from ${modality.title}`, modality, kind: "normals",
        map: modality.maps[0] ?? null, file: "",
      });
    }
    if (hasEnsemble(modality)) {
      for (const name of modality.uncertainties) {
        views.push({
          id: `${modality.name}/${name}`, title: title(name), modality, kind: "uncertainty", map: null, file: name,
        });
      }
    }
    return views;
  });
}

/** The row of tabs (WAI-ARIA: tabs with automatic activation). */
export class Tabs {
  private views: View[] = [];
  private chosen = "";
  private readonly list = byId("tabs");

  constructor(private readonly onChoose: (view: View) => void) {
    this.list.addEventListener("keydown", (event) => this.onKey(event));
  }

  get current(): View {
    return this.views.find((view) => view.id === this.chosen) ?? this.views[0]!;
  }

  show(views: View[], chosen: string): void {
    this.views = views;
    this.chosen = views.some((view) => view.id === chosen) ? chosen : views[0]!.id;
    const focused = this.list.contains(document.activeElement);
    this.list.replaceChildren(
      ...views.map((view) => {
        const selected = view.id === this.chosen;
        return make("button", {
          type: "button", role: "tab", id: `tab-${view.id}`, class: "tab", "aria-selected": String(selected),
          "aria-controls": "panel", tabindex: selected ? 0 : -1, onclick: () => this.choose(view),
        }, view.title);
      }),
    );
    byId("panel").setAttribute("aria-labelledby", `tab-${this.chosen}`);
    const tab = document.getElementById(`tab-${this.chosen}`);
    if (focused) tab?.focus();
    if (tab) this.list.scrollTo({ left: tab.offsetLeft - this.list.clientWidth / 2 + tab.clientWidth / 2 });
  }

  choose(view: View): void {
    this.show(this.views, view.id);
    this.onChoose(view);
  }

  private onKey(event: KeyboardEvent): void {
    const index = this.views.indexOf(this.current);
    const last = this.views.length - 1;
    const next = { ArrowLeft: index === 0 ? last : index - 1, ArrowRight: index === last ? 0 : index + 1, Home: 0,
      End: last }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    this.choose(this.views[next]!);
    document.getElementById(`tab-${this.chosen}`)?.focus();
  }
}
