// One canvas of NiiVue with a CT and its label map; windows in HU, labels by id.

import { Planes } from "./planes.js";

// Centres and widths in HU as they are usual in reading rooms.
export const WINDOWS = [
  { name: "Soft tissue", centre: 50, width: 400 },
  { name: "Lung", centre: -550, width: 1500 },
  { name: "Bone", centre: 400, width: 1800 },
  { name: "Liver", centre: 70, width: 150 },
  { name: "Mediastinum", centre: 40, width: 350 },
  { name: "Brain", centre: 40, width: 80 },
];
const NUM_LAYOUTS = 5; // all planes, axial, coronal, sagittal, 3D
const OUTLINE_PX = 1.6;
const RANGE_HU = [-1024, 3071]; // of twelve bits, as scanners store them
const MAX_CACHED_BYTES = 600e6;
const WHOLE_SCAN_VOXELS = 40e6;

// Decoded volumes by address, the least recently shown first; shared by all canvases.
const cache = new Map();

function sizeOf(entry) {
  return entry.image?.img?.byteLength ?? 0;
}

/** Load and decode a volume, or take it from the cache. Rejects with a sentence. */
export function loadVolume(url) {
  const known = cache.get(url);
  if (known) {
    cache.delete(url);
    cache.set(url, known);
    return known.promise;
  }
  const entry = { image: null, promise: null };
  entry.promise = fetchVolume(url).then((image) => {
    entry.image = image;
    let total = [...cache.values()].reduce((sum, other) => sum + sizeOf(other), 0);
    for (const [other, held] of cache) {
      if (total <= MAX_CACHED_BYTES || other === url) break;
      total -= sizeOf(held);
      cache.delete(other);
    }
    return image;
  });
  entry.promise.catch(() => cache.delete(url));
  cache.set(url, entry);
  return entry.promise;
}

async function fetchVolume(url) {
  const name = url.split("/").pop().split("?")[0].replace(/\.gz$/, "");
  const content = await unpack(url);
  try {
    const image = await niivue.NVImage.loadFromUrl({ url: content, name, colormap: "ct" });
    const dims = image?.hdr?.dims ?? [];
    if (!image?.img?.length || image.img.length < dims[1] * dims[2] * dims[3]) throw new Error("too few voxels");
    image.hdr.intent_code = 0; // label maps have their own colours, whether or not the header marks them as labels
    return image;
  } catch (error) {
    throw new Error(damaged(error));
  }
}

const damaged = (error) => `This volume cannot be read (${error?.message ?? error}). The file is damaged or no image.`;

// Files are fetched and unpacked in workers: an image and its label map at the same time, while the page stays responsive.
const workers = [];
const waiting = new Map();
let numAsked = 0;

/** The bytes of a file, unpacked. */
function unpack(url) {
  if (!workers.length) {
    for (let n = 0; n < 2; n++) {
      const worker = new Worker(new URL("unpack.js", import.meta.url));
      worker.onmessage = ({ data }) => {
        const { resolve, reject } = waiting.get(data.number);
        waiting.delete(data.number);
        if (data.content) resolve(data.content);
        else if (data.fault !== undefined) reject(new Error(damaged(data.fault)));
        else reject(new Error(spellFault(data.status, data.text)));
      };
      workers.push(worker);
    }
  }
  const number = numAsked++;
  workers[number % workers.length].postMessage({ number, url: new URL(url, document.baseURI).href });
  return new Promise((resolve, reject) => waiting.set(number, { resolve, reject }));
}

/** The sentence that the server answered. */
export async function readFault(answer) {
  return spellFault(answer.status, await answer.text());
}

function spellFault(status, text) {
  try {
    return JSON.parse(text).error ?? text;
  } catch {
    return text || `The server answered ${status}.`;
  }
}

// Windows are given in HU and labels have a table, so NiiVue need not search all voxels for their range.
niivue.NVImage.prototype.calMinMax = function () {
  const [least, most] = RANGE_HU;
  Object.assign(this, { cal_min: least, cal_max: most, robust_min: least, robust_max: most, global_min: least, global_max: most });
  return [least, most, least, most];
};

export class Viewer {
  constructor(canvas, { onMove = () => {}, onWindow = () => {} } = {}) {
    this.canvas = canvas;
    this.onMove = onMove;
    this.onWindow = onWindow;
    this.nv = null;
    this.labels = [];
    this.hidden = new Set();
    this.opacity = 0.45;
    this.outlined = false;
    this.window = { ...WINDOWS[0] };
    this.layout = 0;
    this.plane = 2;
    this.shown = 0;
    this.follower = null;
    this.leavesOut3D = false;
  }

  async start() {
    const nv = new niivue.Niivue({
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.49, 0.7, 0.94, 0.55],
      crosshairWidth: 0.35, // of the body's width: a pixel in the small panes
      crosshairWidthUnit: "percent",
      crosshairGap: 14,
      showAllOrientationMarkers: true,
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      show3Dcrosshair: false,
      multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS,
      dragMode: niivue.DRAG_MODE.windowing,
      isColorbar: false,
      isOrientCube: false,
      loadingText: "",
      fontSizeScaling: 0.35,
      fontMinPx: 13,
      fontColor: [0.87, 0.89, 0.91, 1],
      tileMargin: 2,
      dragAndDropEnabled: false,
      logLevel: "error",
      viewModeHotKey: "",
      clipPlaneHotKey: "",
    });
    nv.onLocationChange = (place) => this.report(place);
    nv.onAzimuthElevationChange = () => this.follower?.copyFrom(this);
    nv.onIntensityChange = (volume) => {
      const width = volume.cal_max - volume.cal_min;
      this.window = { name: "", centre: volume.cal_min + width / 2, width };
      this.onWindow(this.window);
    };
    // Grey; in 3D what is darker than soft tissue is clear, so that air and fat do not hide the rest.
    const grey = [0, 100, 150, 255];
    nv.addColormap("ct", { R: grey, G: grey, B: grey, A: [0, 0, 40, 150], I: grey });
    nv.meshShaders = []; // no surfaces here
    await nv.attachToCanvas(this.canvas);
    this.nv = nv;
    this.planes = new Planes(nv);
    const info = nv.gl.getExtension("WEBGL_debug_renderer_info");
    // Without a graphics card, 3D takes most of the time of every redraw, so it is only shown in its own layout.
    this.leavesOut3D = /swiftshader|llvmpipe|software/i.test(info ? nv.gl.getParameter(info.UNMASKED_RENDERER_WEBGL) : "");
    this.setLayout(0);
    new ResizeObserver(() => this.layout === 0 && this.setLayout(0)).observe(this.canvas);
  }

  /** Show a CT with a label map over it, or a label map alone; resolves to false where another case came first. */
  async show({ image, overlay, labels, findPlace = () => null }) {
    const ticket = ++this.shown;
    const urls = [image, overlay].filter(Boolean);
    const volumes = await Promise.all(urls.map(loadVolume));
    if (ticket !== this.shown) return false;
    this.labels = labels ?? [];
    this.ct = image ? volumes[0] : null;
    this.map = overlay ? volumes[volumes.length - 1] : null;
    this.ids = this.map ? findIds(this.map) : new Map();
    if (this.ct) {
      this.ct.cal_min = this.window.centre - this.window.width / 2;
      this.ct.cal_max = this.window.centre + this.window.width / 2;
    }
    this.hidden = this.chooseHidden();
    this.planes.show(this.ct, this.map, this.labelStyle);
    if (this.map) this.colour();
    const nv = this.nv;
    nv.volumes = volumes;
    nv.back = volumes[0];
    nv.overlays = volumes.slice(1);
    nv.scene.pan2Dxyzmm = [0, 0, 0, 1];
    // In place before anything is drawn: drawing 3D is what takes time without a graphics card.
    const voxel = findPlace() ?? volumes[0].dimsRAS.slice(1, 4).map((side) => Math.floor(side / 2));
    nv.scene.crosshairPos = nv.vox2frac(voxel);
    nv.updateGLVolume();
    nv.createOnLocationChange();
    return true;
  }

  // Organs are hidden at first where there are lesions: they would cover what is to be judged.
  chooseHidden() {
    const present = this.labels.filter((label) => this.ids.has(label.id));
    const lesions = present.filter((label) => label.lesion);
    return new Set(lesions.length && this.ct ? present.filter((l) => !l.lesion).map((l) => l.id) : []);
  }

  colour() {
    const known = new Map(this.labels.map((label) => [label.id, label]));
    const last = Math.max(1, ...this.ids.keys(), ...known.keys());
    const table = { R: [], G: [], B: [], A: [], I: [], labels: [] };
    for (let id = 0; id <= last; id++) {
      const label = known.get(id);
      const [red, green, blue] = label?.colour ?? [200, 200, 200];
      table.R.push(red);
      table.G.push(green);
      table.B.push(blue);
      table.A.push(id !== 0 && !this.hidden.has(id) && this.ids.has(id) ? 255 : 0);
      table.I.push(id);
      table.labels.push(label?.name ?? (id ? `label ${id}` : ""));
    }
    this.planes.setPalette(table);
    this.map.setColormapLabel(table);
  }

  /** Draw the labels in their colours, after some were hidden or shown. */
  recolour() {
    if (!this.map) return;
    this.colour();
    this.nv.refreshLayers(this.map, this.ct ? 1 : 0);
    this.nv.drawScene();
  }

  /** Labels filled, in this opacity, or outlined. */
  setLabelStyle({ opacity, outlined }) {
    this.opacity = opacity;
    this.outlined = outlined;
    if (!this.nv) return;
    this.planes.style(this.labelStyle);
    this.nv.drawScene();
  }

  get labelStyle() {
    return {
      opacity: this.ct ? this.opacity : 1,
      outlinePx: this.outlined ? OUTLINE_PX * window.devicePixelRatio : 0,
    };
  }

  setWindow(wanted, { redraws = true } = {}) {
    this.window = { ...wanted };
    if (this.ct && redraws) {
      this.ct.cal_min = wanted.centre - wanted.width / 2;
      this.ct.cal_max = wanted.centre + wanted.width / 2;
      this.nv.refreshLayers(this.ct, 0);
      this.nv.drawScene();
    }
    this.onWindow(this.window);
  }

  /** The window that suits what is looked for. */
  static windowFor(label) {
    if (/lung|nodule|airway/i.test(label)) return WINDOWS[1];
    return /bone|rib|vertebra/i.test(label) ? WINDOWS[2] : WINDOWS[0];
  }

  setLayout(number) {
    if (!this.nv) return;
    this.layout = (number + NUM_LAYOUTS) % NUM_LAYOUTS;
    const has3D = this.layout === 4 || (this.layout === 0 && !this.leavesOut3D);
    const is3DNew = has3D && !this.planes.hasVolumesOfColours;
    this.planes.hasVolumesOfColours = has3D;
    const { MULTIPLANAR, AXIAL, CORONAL, SAGITTAL, RENDER } = niivue.SLICE_TYPE;
    if (this.layout === 0) this.nv.setCustomLayout(this.arrangePlanes());
    else this.nv.clearCustomLayout();
    this.nv.setSliceType([MULTIPLANAR, AXIAL, CORONAL, SAGITTAL, RENDER][this.layout]);
    this.plane = [2, 2, 1, 0, 2][this.layout];
    if (is3DNew) this.nv.updateGLVolume();
  }

  // The axial plane large, the others in a column or, in a narrow pane, in a row.
  arrangePlanes() {
    const { AXIAL, CORONAL, SAGITTAL, RENDER } = niivue.SLICE_TYPE;
    const isWide = this.canvas.clientWidth > 1.15 * this.canvas.clientHeight;
    const others = this.leavesOut3D ? [CORONAL, SAGITTAL] : [CORONAL, SAGITTAL, RENDER];
    const share = 1 / others.length;
    const boxes = others.map((_, n) => (isWide ? [0.64, n * share, 0.36, share] : [n * share, 0.62, share, 0.38]));
    const planes = [AXIAL, ...others];
    boxes.unshift(isWide ? [0, 0, 0.64, 1] : [0, 0, 1, 0.62]);
    return planes.map((sliceType, n) => ({ sliceType, position: boxes[n] }));
  }

  /** Step through the slices of the plane that the mouse was last in. */
  scroll(steps) {
    if (!this.nv) return;
    const step = [0, 0, 0];
    step[this.plane] = steps;
    this.nv.moveCrosshairInVox(...step);
  }

  goTo(voxel) {
    if (!this.nv?.volumes.length) return;
    this.nv.scene.crosshairPos = this.nv.vox2frac(voxel);
    this.nv.drawScene();
    this.nv.createOnLocationChange();
  }

  fit() {
    if (!this.nv) return;
    this.nv.scene.pan2Dxyzmm = [0, 0, 0, 1];
    this.nv.scene.volScaleMultiplier = 1;
    this.nv.drawScene();
  }

  /** Enlarge or reduce about the crosshair. */
  zoom(factor) {
    if (!this.nv) return;
    const { pan2Dxyzmm, crosshairPos } = this.nv.scene;
    const wanted = Math.min(10, Math.max(1, pan2Dxyzmm[3] * factor));
    const change = pan2Dxyzmm[3] - wanted;
    const mm = this.nv.frac2mm(crosshairPos);
    // At no enlargement the whole slice is in its place again.
    const pan = [0, 1, 2].map((axis) => (wanted === 1 ? 0 : pan2Dxyzmm[axis] + change * mm[axis]));
    this.nv.setPan2Dxyzmm([...pan, wanted]);
    this.follower?.copyFrom(this);
  }

  /** Take the place in the body, the zoom and the view in 3D from another viewer; NiiVue itself syncs on focus only. */
  copyFrom(other) {
    if (!this.nv?.volumes.length) return;
    const { crosshairPos, pan2Dxyzmm, renderAzimuth, renderElevation, volScaleMultiplier } = other.nv.scene;
    const mm = other.nv.frac2mm(crosshairPos);
    Object.assign(this.nv.scene, { pan2Dxyzmm: [...pan2Dxyzmm], renderAzimuth, renderElevation, volScaleMultiplier });
    this.nv.scene.crosshairPos = this.nv.mm2frac([mm[0], mm[1], mm[2]]);
    this.nv.drawScene();
  }

  labelAt({ vox }, values) {
    if (!this.map) return 0;
    const { img, dimsRAS, img2RASstart: start, img2RASstep: step } = this.map;
    if (!this.ct || dimsRAS.every((side, n) => side === this.ct.dimsRAS[n])) {
      return img[[0, 1, 2].reduce((at, axis) => at + start[axis] + step[axis] * Math.round(vox[axis]), 0)] ?? 0;
    }
    return Math.round(values[this.ct ? 1 : 0]?.value ?? 0);
  }

  report(place) {
    this.follower?.copyFrom(this);
    if (place.axCorSag >= 0 && place.axCorSag <= 2) this.plane = [2, 1, 0][place.axCorSag];
    const values = place.values ?? [];
    const hu = this.ct ? values[0]?.value : undefined;
    const id = this.labelAt(place, values);
    const name = id ? (this.labels.find((label) => label.id === id)?.name ?? `label ${id}`) : "";
    this.onMove({ hu, name, mm: place.mm, vox: place.vox, plane: this.plane, dims: this.nv.volumes[0]?.dimsRAS });
  }
}

/** Ids of a label map with the voxel in the middle of the slice that shows most of each, along R, A and S. */
function findIds(map) {
  const [, ni, nj, nk] = map.hdr.dims;
  const { img } = map;
  const size = ni * nj;
  const step = img.length > WHOLE_SCAN_VOXELS ? 3 : 1;
  const num = 65536;
  const counts = new Uint32Array(num);
  const places = new Float64Array(num); // sums of the index within the slice, rows and columns apart
  const columns = new Float64Array(num);
  const best = new Map();
  for (let k = 0; k < nk; k++) {
    const seen = [];
    for (let at = 0, from = k * size; at < size; at += step) {
      const id = img[from + at];
      if (id > 0 && id < num) {
        if (counts[id]++ === 0) seen.push(id);
        places[id] += at;
        columns[id] += at % ni;
      }
    }
    for (const id of seen) {
      const count = counts[id];
      if (count > (best.get(id)?.count ?? 0)) {
        const i = columns[id] / count;
        best.set(id, { count, voxel: [Math.round(i), Math.round((places[id] / count - i) / ni), k] });
      }
      counts[id] = places[id] = columns[id] = 0;
    }
  }
  for (const found of best.values()) {
    found.voxel = map.permRAS.map((axis) => (axis > 0 ? found.voxel[axis - 1] : map.hdr.dims[-axis] - 1 - found.voxel[-axis - 1]));
  }
  return best;
}
