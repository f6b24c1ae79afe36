// SPDX-License-Identifier: Apache-2.0
/** The 3-D view: the mesh that the service writes, to be turned, cut and measured. */

import {
  BufferAttribute,
  BufferGeometry,
  Color,
  DoubleSide,
  Group,
  LinearFilter,
  LinearMipmapLinearFilter,
  LinearSRGBColorSpace,
  Mesh,
  MeshBasicMaterial,
  PerspectiveCamera,
  Plane,
  Points,
  PointsMaterial,
  Scene,
  Spherical,
  Texture,
  Vector3,
  WebGLRenderer,
} from "three";
import { OrbitControls } from "three/examples/jsm/controls/OrbitControls.js";
import { coarseMesh } from "./coarse";
import { colorsAt, isSoftware, meshOf, SPREAD, spreadOut } from "./drawing";
import type { SurfaceMesh } from "./readers";

const START_TURN = 0.28; // [rad], so that the first look shows that it is no flat picture
const START_DISTANCE = 1.12;
const SLOW_FRAME_S = 0.03;
const MOST_SAVING = 2;
const PATIENCE = 5; // frames
const TURN_PERIOD_S = 9;
const NEAR_PX = 14;

export interface Length {
  /** In the unit of the mesh. */
  value: number;
  count: number;
}

export class Space {
  readonly canvas: HTMLCanvasElement;
  private readonly renderer: WebGLRenderer;
  private readonly scene = new Scene();
  private readonly camera = new PerspectiveCamera(45, 1, 0.001, 100);
  private readonly controls: OrbitControls;
  private readonly content = new Group();
  private readonly near = new Plane(new Vector3(0, 0, -1), 0);
  private readonly far = new Plane(new Vector3(0, 0, 1), 0);
  private mesh: Mesh<BufferGeometry, MeshBasicMaterial> | null = null;
  private points: Points<BufferGeometry, PointsMaterial> | null = null;
  private surface: SurfaceMesh | null = null;
  private coarse: Mesh<BufferGeometry, MeshBasicMaterial> | null = null;
  /** Savings while the view moves on a slow machine: 0 none, 1 fewer triangles, 2 fewer pixels too. */
  private saving = 0;
  private needed = 0;
  private slowFrames = 0;
  private depths: Float32Array = new Float32Array();
  private asPoints = false;
  private pointSize = 2;
  private shares: [number, number] = [0, 1];
  private marks: Vector3[] = [];
  private isMeasuring = false;
  private isTurning = false;
  private turned = 0;
  private isMoving = false;
  private hasMoved = false;
  private pending = 0;
  private lastFrame = 0;
  private frameTime = 0.016;
  private settle = 0;

  /** How a length is written on its line. */
  label: (value: number) => string = (value) => value.toFixed(3);
  onLength: (length: Length) => void = () => undefined;

  constructor(
    private readonly host: HTMLElement,
    private readonly overlay: SVGSVGElement,
  ) {
    this.renderer = new WebGLRenderer({ antialias: !isSoftware(), powerPreference: "high-performance", alpha: false });
    this.renderer.outputColorSpace = LinearSRGBColorSpace; // colors pass through as they are
    this.renderer.localClippingEnabled = true;
    this.canvas = this.renderer.domElement;
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-roledescription", "3-D view");
    this.canvas.setAttribute(
      "aria-label",
      "The photo in 3-D. Arrow keys turn it, plus and minus zoom, 0 shows the front. While measuring, Enter marks the " +
        "point in the middle, Escape clears.",
    );
    host.prepend(this.canvas);
    this.scene.add(this.content);
    this.controls = new OrbitControls(this.camera, this.canvas);
    this.controls.enableDamping = true;
    this.controls.dampingFactor = 0.12;
    this.controls.zoomToCursor = true;
    this.controls.addEventListener("change", () => this.request());
    this.controls.addEventListener("start", () => this.move(true));
    this.controls.addEventListener("end", () => this.move(false));
    this.canvas.addEventListener("keydown", (event) => this.onKey(event));
    this.listenForMarks();
    new ResizeObserver(() => this.resize()).observe(host);
    new MutationObserver(() => this.applyLook()).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.applyLook());
  }

  /** Shows another mesh; with `keepView` from where one looks now. */
  async show(surface: SurfaceMesh, keepView: boolean): Promise<void> {
    const bitmap = await createImageBitmap(surface.texture);
    this.clearContent();
    this.surface = surface;
    const texture = new Texture(bitmap);
    texture.flipY = false;
    texture.generateMipmaps = !isSoftware();
    texture.minFilter = isSoftware() ? LinearFilter : LinearMipmapLinearFilter;
    texture.anisotropy = isSoftware() ? 1 : 4;
    texture.needsUpdate = true;
    this.mesh = meshOf(surface, new MeshBasicMaterial({ map: texture, side: DoubleSide }));
    const cloud = new BufferGeometry();
    cloud.setAttribute("position", this.mesh.geometry.getAttribute("position"));
    cloud.setAttribute("color", new BufferAttribute(colorsAt(surface.uv, bitmap), 3, true));
    cloud.setIndex(new BufferAttribute(spreadOut(surface.positions.length / 3), 1));
    this.points = new Points(cloud, new PointsMaterial({ vertexColors: true, sizeAttenuation: false }));
    this.points.frustumCulled = false;
    this.content.add(this.mesh, this.points);
    const every = Math.max(1, Math.floor(surface.positions.length / 3 / 20_000));
    this.depths = Float32Array.from({ length: Math.floor(surface.positions.length / 3 / every) }, (_, index) =>
      -surface.positions[3 * every * index + 2]!).sort();
    this.setFov(surface.camera.fov);
    this.marks = [];
    if (!keepView) this.front(START_TURN);
    this.applyLook();
    this.resize();
  }

  /** Points instead of the mesh. */
  setPoints(asPoints: boolean, size: number): void {
    this.asPoints = asPoints;
    this.pointSize = size;
    this.applyLook();
  }

  /** Shows only depths between two shares of the points, [0, 1]; returns these depths. */
  setCuts(low: number, high: number): [number, number] {
    this.shares = [low, high];
    this.applyLook();
    return [this.depthAt(low), this.depthAt(high)];
  }

  /** Stretches the view to another field of view along the photo's longer side [deg]. */
  setFov(degrees: number): void {
    if (this.surface === null) return;
    const { camera } = this.surface;
    const focal = Math.max(camera.width, camera.height) / 2 / Math.tan((degrees * Math.PI) / 360);
    const [across, down] = [camera.fx / focal, camera.fy / focal];
    const [lastAcross, lastDown] = [this.content.scale.x, this.content.scale.y];
    this.content.scale.set(across, down, 1);
    for (const mark of this.marks) mark.set((mark.x * across) / lastAcross, (mark.y * down) / lastDown, mark.z);
    this.content.updateMatrixWorld();
    this.tellLength();
    this.request();
  }

  /** Looks from the photo's camera, or turned around the middle of the scene [rad]. */
  front(turn = 0): void {
    const middle = this.depthAt(0.4) || 1;
    this.camera.near = middle / 200;
    this.camera.far = (this.depthAt(1) || 1) * 20;
    const target = new Vector3(0, 0, -middle);
    const distance = turn ? middle * START_DISTANCE : middle;
    this.controls.target.copy(target);
    this.camera.position.setFromSphericalCoords(distance, Math.PI / 2 - turn / 3, -turn).add(target);
    this.fitView();
    this.controls.update();
    this.request();
  }

  setMeasuring(on: boolean): void {
    this.isMeasuring = on;
    this.host.classList.toggle("measuring", on);
    this.request();
  }

  setTurning(on: boolean): void {
    this.isTurning = on;
    this.turned = 0;
    this.move(on);
  }

  clearMarks(): void {
    this.marks = [];
    this.tellLength();
    this.request();
  }

  /** Draws again: the look of labels or of the page has changed. */
  refresh(): void {
    this.applyLook();
  }

  // ---------------------------------------------------------------------------------------------------------- drawing

  private request(): void {
    if (this.pending) return;
    this.pending = requestAnimationFrame((time) => {
      this.pending = 0;
      this.draw(time / 1000);
    });
  }

  private draw(time: number): void {
    if (this.surface === null || this.host.hidden || this.canvas.width === 0) return;
    const passed = time - this.lastFrame;
    this.lastFrame = time;
    if (this.isTurning) this.swing(Math.min(passed, 0.1));
    const stillMoving = this.controls.update() || this.isTurning;
    const moves = stillMoving || this.isMoving;
    if (moves && this.hasMoved) this.frameTime += 0.2 * (Math.min(passed, 0.25) - this.frameTime);
    this.hasMoved = moves;
    this.save(moves);
    this.renderer.render(this.scene, this.camera);
    this.host.dataset.frames = String(Number(this.host.dataset.frames ?? 0) + 1);
    this.host.dataset.triangles = String(this.renderer.info.render.triangles);
    this.drawOverlay();
    if (stillMoving) this.request();
    else if (this.saving) {
      window.clearTimeout(this.settle);
      this.settle = window.setTimeout(() => this.request(), 150);
    }
  }

  /** Saves what is needed for a smooth view while it moves, and nothing when it rests. */
  private save(moves: boolean): void {
    if (this.frameTime > SLOW_FRAME_S && this.needed < MOST_SAVING) {
      this.slowFrames += 1;
      if (this.slowFrames > PATIENCE) [this.needed, this.slowFrames] = [this.needed + 1, 0];
    } else {
      this.slowFrames = 0;
    }
    const wanted = moves ? this.needed : 0;
    if (this.mesh === null || this.surface === null || wanted === this.saving) return;
    this.saving = wanted;
    if (wanted && this.coarse === null && !this.asPoints) {
      this.coarse = meshOf(coarseMesh(this.surface), this.mesh.material);
      this.content.add(this.coarse);
    }
    this.applyLook();
  }

  private move(moves: boolean): void {
    this.isMoving = moves;
    if (moves) this.lastFrame = performance.now() / 1000;
    this.request();
  }

  private swing(seconds: number): void {
    const last = Math.sin((this.turned / TURN_PERIOD_S) * 2 * Math.PI);
    this.turned += seconds;
    const angle = 0.45 * (Math.sin((this.turned / TURN_PERIOD_S) * 2 * Math.PI) - last);
    const offset = this.camera.position.clone().sub(this.controls.target).applyAxisAngle(this.camera.up, angle);
    this.camera.position.copy(this.controls.target).add(offset);
  }

  private applyLook(): void {
    if (this.mesh === null || this.points === null) return;
    const isCoarse = this.saving > 0 && this.coarse !== null;
    this.mesh.visible = !this.asPoints && !isCoarse;
    if (this.coarse) this.coarse.visible = !this.asPoints && isCoarse;
    const ratio = isSoftware() ? 1 : Math.min(window.devicePixelRatio, 2);
    this.renderer.setPixelRatio(this.saving === MOST_SAVING ? ratio / 2 : ratio);
    const count = this.points.geometry.index?.count ?? 0;
    this.points.geometry.setDrawRange(0, this.saving ? Math.floor(count / SPREAD) : count);
    this.points.material.size = this.pointSize * this.renderer.getPixelRatio() * (this.saving ? 1.6 : 1);
    this.renderer.setClearColor(new Color().setStyle(getComputedStyle(this.host).backgroundColor, LinearSRGBColorSpace));
    this.points.visible = this.asPoints;
    const [low, high] = this.shares;
    this.near.constant = -this.depthAt(low);
    this.far.constant = this.depthAt(high);
    const planes = [...(low > 0 ? [this.near] : []), ...(high < 1 ? [this.far] : [])];
    for (const material of [this.mesh.material, this.points.material]) {
      if ((material.clippingPlanes ?? []).length !== planes.length) material.needsUpdate = true;
      material.clippingPlanes = planes;
    }
    this.request();
  }

  /** The depth below which a share of the points lies. */
  private depthAt(share: number): number {
    const place = Math.round(Math.min(1, Math.max(0, share)) * (this.depths.length - 1));
    return this.depths[place] ?? 0;
  }

  private resize(): void {
    const { clientWidth: width, clientHeight: height } = this.host;
    if (!width || !height) return;
    this.renderer.setSize(width, height);
    this.applyLook();
    this.overlay.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.fitView();
    this.request();
  }

  /** The photo's field of view fits into the canvas, whatever its shape. */
  private fitView(): void {
    const { clientWidth: width, clientHeight: height } = this.host;
    if (this.surface === null || !width || !height) return;
    const { camera } = this.surface;
    const down = (camera.height / 2 / camera.fy) * this.content.scale.y;
    const across = (camera.width / 2 / camera.fx) * this.content.scale.x;
    this.camera.aspect = width / height;
    this.camera.fov = (360 / Math.PI) * Math.atan(Math.max(down, across / this.camera.aspect) * 1.04);
    this.camera.updateProjectionMatrix();
  }

  private clearContent(): void {
    this.coarse?.geometry.dispose();
    [this.coarse, this.saving] = [null, 0];
    for (const part of [this.mesh, this.points]) {
      part?.geometry.dispose();
      part?.material.map?.dispose();
      part?.material.dispose();
    }
    this.content.clear();
  }

  // -------------------------------------------------------------------------------------------------------- measuring

  private listenForMarks(): void {
    let start: [number, number] | null = null;
    this.canvas.addEventListener("pointerdown", (event) => (start = [event.clientX, event.clientY]));
    this.canvas.addEventListener("pointerup", (event) => {
      if (start === null || !this.isMeasuring) return;
      if (Math.hypot(event.clientX - start[0], event.clientY - start[1]) > 5) return; // it was a turn
      const box = this.canvas.getBoundingClientRect();
      this.mark(event.clientX - box.left, event.clientY - box.top);
    });
  }

  private mark(x: number, y: number): void {
    const found = this.pick(x, y);
    if (found === null) return;
    if (this.marks.length >= 2) this.marks = [];
    this.marks.push(found);
    this.tellLength();
    this.request();
  }

  private tellLength(): void {
    const [first, second] = this.marks;
    this.onLength({ value: first && second ? first.distanceTo(second) : 0, count: this.marks.length });
  }

  /** The vertex in front at a place of the canvas. */
  private pick(x: number, y: number): Vector3 | null {
    if (this.surface === null) return null;
    this.camera.updateMatrixWorld();
    const matrix = this.camera.projectionMatrix.clone().multiply(this.camera.matrixWorldInverse);
    const m = matrix.elements;
    const { positions } = this.surface;
    const { x: across, y: down } = this.content.scale;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const [low, high] = [this.depthAt(this.shares[0]), this.depthAt(this.shares[1])];
    const near: { index: number; away: number; px: number }[] = [];
    let front = Infinity;
    for (let index = 0; index < positions.length; index += 3) {
      const z = positions[index + 2]!;
      if ((this.shares[0] > 0 && -z < low) || (this.shares[1] < 1 && -z > high)) continue;
      const px = across * positions[index]!;
      const py = down * positions[index + 1]!;
      const away = m[3]! * px + m[7]! * py + m[11]! * z + m[15]!;
      if (away <= 0) continue;
      const sx = ((m[0]! * px + m[4]! * py + m[8]! * z + m[12]!) / away + 1) * 0.5 * width;
      const sy = (1 - (m[1]! * px + m[5]! * py + m[9]! * z + m[13]!) / away) * 0.5 * height;
      const distance = Math.hypot(sx - x, sy - y);
      if (distance > NEAR_PX) continue;
      near.push({ index, away, px: distance });
      if (distance < NEAR_PX / 2) front = Math.min(front, away);
    }
    if (front === Infinity) front = Math.min(...near.map((one) => one.away));
    const best = near.filter((one) => one.away <= front * 1.03).sort((one, other) => one.px - other.px)[0];
    if (best === undefined) return null;
    const at = best.index;
    return new Vector3(across * positions[at]!, down * positions[at + 1]!, positions[at + 2]!);
  }

  private drawOverlay(): void {
    const { clientWidth: width, clientHeight: height } = this.host;
    const seen = this.marks.map((mark) => mark.clone().project(this.camera));
    const at = seen.map((mark) => [((mark.x + 1) / 2) * width, ((1 - mark.y) / 2) * height] as const);
    const parts = at.map(([x, y]) => svg("circle", { cx: x, cy: y, r: 6 }));
    const [first, second] = at;
    if (first && second && this.marks.length === 2) {
      const [x, y] = [(first[0] + second[0]) / 2, (first[1] + second[1]) / 2];
      const text = svg("text", { x, y: y - 10 });
      text.textContent = this.label(this.marks[0]!.distanceTo(this.marks[1]!));
      parts.unshift(svg("line", { x1: first[0], y1: first[1], x2: second[0], y2: second[1] }));
      parts.push(text);
    }
    if (this.isMeasuring && document.activeElement === this.canvas) {
      parts.push(svg("path", { d: `M${width / 2 - 9} ${height / 2}h18M${width / 2} ${height / 2 - 9}v18`, class: "cross" }));
    }
    this.overlay.replaceChildren(...parts);
  }

  // --------------------------------------------------------------------------------------------------------- keyboard

  private onKey(event: KeyboardEvent): void {
    const step = event.shiftKey ? 0.02 : 0.08;
    const turns: Record<string, [number, number]> = {
      ArrowLeft: [-step, 0],
      ArrowRight: [step, 0],
      ArrowUp: [0, -step],
      ArrowDown: [0, step],
    };
    const turn = turns[event.key];
    if (turn) this.orbit(...turn, 1);
    else if (event.key === "+" || event.key === "=") this.orbit(0, 0, 0.9);
    else if (event.key === "-") this.orbit(0, 0, 1 / 0.9);
    else if (event.key === "0") this.front();
    else if (event.key === "Enter" && this.isMeasuring) this.mark(this.host.clientWidth / 2, this.host.clientHeight / 2);
    else if (event.key === "Escape" && this.marks.length) this.clearMarks();
    else return;
    event.preventDefault();
  }

  private orbit(theta: number, phi: number, factor: number): void {
    const offset = this.camera.position.clone().sub(this.controls.target);
    const place = new Spherical().setFromVector3(offset);
    place.theta += theta;
    place.phi = Math.min(Math.PI - 0.05, Math.max(0.05, place.phi + phi));
    place.radius *= factor;
    this.camera.position.setFromSpherical(place).add(this.controls.target);
    this.controls.update();
    this.request();
  }
}

function svg(name: string, attributes: Record<string, string | number>): SVGElement {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  return element;
}
