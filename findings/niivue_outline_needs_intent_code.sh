#!/bin/bash
# NiiVue: setAtlasOutline on a label map, with and without NIfTI's intent code for labels (1002).
#
# Label maps of segmentation tools usually have intent code 0. NiiVue 0.69.0 colours such a map with a label colour map,
# filled, like any other; but `setAtlasOutline(1)` draws its outlines only where the header says 1002, and does nothing,
# without a message, where it says 0. The documentation of the call does not mention the code.
# Needs node and npm; the browser is an npm package, too. Exits 0 while this is so, 1 when it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export TMPDIR="$work"
npm init --yes >/dev/null
npm install --silent "@niivue/niivue@0.69.0" "@sparticuz/chromium@149.0.0" "playwright-core@1.58.0"
cat >outline.mjs <<'JS'
import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { gzipSync } from "node:zlib";
import sparticuz from "@sparticuz/chromium";
import { chromium } from "playwright-core";

const SIDE = 32, NUM_VOXELS = SIDE ** 3, PIXELS = 400;

/** A NIfTI-1 file of bytes, 32^3 voxels of 4 mm, with an intent code. */
function toNifti(values, intentCode) {
  const header = new DataView(new ArrayBuffer(352));
  header.setInt32(0, 348, true);
  [3, SIDE, SIDE, SIDE, 1, 1, 1, 1].forEach((side, i) => header.setInt16(40 + 2 * i, side, true));
  header.setInt16(68, intentCode, true);
  header.setInt16(70, 2, true); // unsigned bytes
  header.setInt16(72, 8, true);
  [1, 4, 4, 4].forEach((side, i) => header.setFloat32(76 + 4 * i, side, true));
  header.setFloat32(108, 352, true); // where the voxels begin
  header.setFloat32(112, 1, true);
  header.setInt16(254, 1, true); // sform
  for (const row of [0, 1, 2]) {
    header.setFloat32(280 + 20 * row, 4, true);
    header.setFloat32(292 + 16 * row, -62, true);
  }
  [0x6e, 0x2b, 0x31, 0].forEach((byte, i) => header.setUint8(344 + i, byte));
  return gzipSync(Buffer.concat([Buffer.from(header.buffer), Buffer.from(values)]));
}

const image = Uint8Array.from({ length: NUM_VOXELS }, (_, voxel) => voxel % 3);
const cube = Uint8Array.from({ length: NUM_VOXELS }, (_, voxel) =>
  [voxel % SIDE, Math.floor(voxel / SIDE) % SIDE, Math.floor(voxel / SIDE ** 2)].every((at) => at >= 8 && at < 24) ? 3 : 0);
const files = {
  "/": ["text/html", `<canvas id="canvas" width="${PIXELS}" height="${PIXELS}"></canvas><script src="niivue.js"></script>`],
  "/niivue.js": ["text/javascript", await readFile("node_modules/@niivue/niivue/dist/niivue.umd.js")],
  "/image.nii.gz": ["application/octet-stream", toNifti(image, 0)],
  "/label.nii.gz": ["application/octet-stream", toNifti(cube, 1002)],
  "/none.nii.gz": ["application/octet-stream", toNifti(cube, 0)],
};
const server = createServer((request, response) => {
  const [type, body] = files[request.url] ?? ["text/plain", ""];
  response.setHeader("content-type", type).end(body);
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const address = `http://127.0.0.1:${server.address().port}/`;
const browser = await chromium.launch({
  executablePath: await sparticuz.executablePath(),
  args: [...sparticuz.args, "--use-angle=swiftshader", "--enable-unsafe-swiftshader"],
});
const page = await browser.newPage();
await page.goto(address);

/** Pixels that are nearly pure red, before and after the outline is switched on; the fill is too transparent for them. */
const countRed = async ({ kind, address, side }) => {
  const viewer = new niivue.Niivue({ isResizeCanvas: false, crosshairWidth: 0 });
  await viewer.attachTo("canvas");
  await viewer.loadVolumes([{ url: `${address}image.nii.gz` }, { url: `${address}${kind}.nii.gz`, opacity: 0.3 }]);
  viewer.volumes[1].setColormapLabel({ R: [0, 0, 0, 255], G: [0, 0, 0, 0], B: [0, 0, 0, 0], A: [0, 255, 255, 255], I: [0, 1, 2, 3] });
  viewer.setSliceType(viewer.sliceTypeAxial);
  const count = (outline) => {
    viewer.setAtlasOutline(outline);
    const pixels = new Uint8Array(4 * side * side);
    viewer.gl.readPixels(0, 0, side, side, viewer.gl.RGBA, viewer.gl.UNSIGNED_BYTE, pixels);
    return pixels.reduce((sum, red, i) => sum + (i % 4 === 0 && red > 200 && pixels[i + 1] < 40), 0);
  };
  return [count(0), count(1)];
};
const found = {};
for (const kind of ["label", "none"]) {
  found[kind] = await page.evaluate(countRed, { kind, address, side: PIXELS });
  console.log(`intent code ${kind === "label" ? 1002 : 0}: ${found[kind][0]} red pixels without outline, ${found[kind][1]} with`);
}
await browser.close();
server.close();
const isSo = found.label[0] === 0 && found.label[1] > 1000 && found.none[0] === 0 && found.none[1] === 0;
console.log(isSo ? "as described" : "CHANGED");
process.exit(isSo ? 0 : 1);
JS
echo "NiiVue 0.69.0"
node outline.mjs
