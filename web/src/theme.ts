// SPDX-License-Identifier: Apache-2.0
/** Light, dark, or as the system has it. */

import { byId } from "./dom";

const KEY = "openmarigold-theme";
const THEMES = ["system", "light", "dark"] as const;

export function startTheme(): void {
  const button = byId("theme");
  let theme = THEMES.find((one) => one === localStorage.getItem(KEY)) ?? "system";
  const apply = () => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const text = `Colors of the page: ${theme === "system" ? "as the system" : theme}`;
    button.setAttribute("aria-label", text);
    button.title = text;
  };
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]!;
    localStorage.setItem(KEY, theme);
    apply();
  });
  apply();
}
