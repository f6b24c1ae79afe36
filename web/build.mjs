// SPDX-License-Identifier: Apache-2.0
// Bundles the page into a folder: node build.mjs FOLDER. web/build.py calls it.
import { build } from "esbuild";
import { copyFile, mkdir, readdir, writeFile } from "node:fs/promises";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const outdir = process.argv[2];
const EXAMPLES = ["courtyard.jpg", "hotel-room.jpg", "coffee.jpg"];
const photos = join(here, "..", "examples", "photos");

await build({
  absWorkingDir: here,
  entryPoints: { app: "src/main.ts", style: "style.css" },
  outdir,
  bundle: true,
  splitting: true, // three.js comes with the first look at 3-D
  format: "esm",
  target: ["es2022", "chrome123", "firefox120", "safari17.5"],
  minify: true,
  legalComments: "inline",
  chunkNames: "[name]-[hash]",
  logLevel: "warning",
});
await copyFile(join(here, "index.html"), join(outdir, "index.html"));
await copyFile(join(here, "icon.svg"), join(outdir, "icon.svg"));
await copyFile(join(here, "node_modules", "three", "LICENSE"), join(outdir, "LICENSE-three.txt"));
const found = EXAMPLES.filter((name) => existsSync(join(photos, name)));
if (found.length) await mkdir(join(outdir, "examples"), { recursive: true });
for (const name of found) await copyFile(join(photos, name), join(outdir, "examples", name));
await writeFile(join(outdir, "examples.json"), JSON.stringify(found));
if (!(await readdir(outdir)).includes("app.js")) throw new Error("app.js was not written");
