// Draws the planes directly from voxels. NiiVue converts every layer into a volume of colours, again after each change
// of the window or the labels, which takes seconds for a large CT without a graphics card. Here the shader of its planes
// reads HU and label ids itself, and the volumes of colours are only made while 3D is visible.

const UNITS = { image: 12, labels: 13, palette: 14 }; // NiiVue uses these texture units for its drawing tools only
const PALETTE_SIDE = 256;

// A pixel has the label with the largest bilinear weight around it, so that borders are smooth at any zoom; outlines
// have a width in pixels.
const shaderFor = (sampler) => `#version 300 es
precision highp float;
precision highp int;
uniform highp ${sampler} image;
uniform highp usampler3D labels;
uniform highp sampler2D palette;
uniform mat4 imageMatrix;
uniform mat4 labelsMatrix;
uniform vec2 scale;
uniform vec2 window;
uniform float imageShown;
uniform float labelsShown;
uniform float outline;
uniform int axCorSag;
in vec3 texPos;
out vec4 color;

struct Corners { ivec3 a; ivec3 b; ivec3 c; ivec3 d; vec4 share; bool isOutside; };

// The four voxels around a place in the plane, and their bilinear weights.
Corners findCorners(vec3 place, mat4 matrix, ivec3 sides) {
  vec3 at = (vec4(place, 1.0) * matrix).xyz * vec3(sides) - 0.5;
  vec4 normal = vec4(axCorSag == 2, axCorSag == 1, axCorSag == 0, 0.0) * matrix;
  vec3 steep = abs(normal.xyz) * vec3(sides);
  int through = steep.x > max(steep.y, steep.z) ? 0 : steep.y > steep.z ? 1 : 2;
  at[through] = round(at[through]);
  ivec3 across = through == 0 ? ivec3(0, 1, 0) : ivec3(1, 0, 0);
  ivec3 up = through == 2 ? ivec3(0, 1, 0) : ivec3(0, 0, 1);
  ivec3 last = sides - 1;
  ivec3 low = clamp(ivec3(floor(at)), ivec3(0), last);
  ivec3 high = clamp(ivec3(floor(at)) + across + up, ivec3(0), last);
  float x = dot(fract(at), vec3(across));
  float y = dot(fract(at), vec3(up));
  vec4 share = vec4((1.0 - x) * (1.0 - y), x * (1.0 - y), (1.0 - x) * y, x * y);
  bool isOutside = any(lessThan(at, vec3(-0.5))) || any(greaterThan(at, vec3(sides) - 0.5));
  return Corners(low, low + across * (high - low), low + up * (high - low), high, share, isOutside);
}

uint labelAt(vec3 place) {
  Corners at = findCorners(place, labelsMatrix, textureSize(labels, 0));
  if (at.isOutside) return 0u;
  uint a = texelFetch(labels, at.a, 0).r;
  uint b = texelFetch(labels, at.b, 0).r;
  uint c = texelFetch(labels, at.c, 0).r;
  uint d = texelFetch(labels, at.d, 0).r;
  if (a == b && a == c && a == d) return a;
  vec4 total = at.share.x * vec4(1.0, a == b, a == c, a == d);
  total += at.share.y * vec4(a == b, 1.0, b == c, b == d);
  total += at.share.z * vec4(a == c, b == c, 1.0, c == d);
  total += at.share.w * vec4(a == d, b == d, c == d, 1.0);
  float most = max(max(total.x, total.y), max(total.z, total.w));
  return total.x == most ? a : total.y == most ? b : total.z == most ? c : d;
}

vec4 colourAt(vec3 place) {
  int id = int(labelAt(place));
  return texelFetch(palette, ivec2(id % ${PALETTE_SIDE}, id / ${PALETTE_SIDE}), 0);
}

void main() {
  color = vec4(0.0, 0.0, 0.0, 1.0);
  if (imageShown > 0.0) {
    Corners at = findCorners(texPos, imageMatrix, textureSize(image, 0));
    vec4 values = vec4(texelFetch(image, at.a, 0).r, texelFetch(image, at.b, 0).r, texelFetch(image, at.c, 0).r, texelFetch(image, at.d, 0).r);
    color.rgb = vec3(clamp((dot(values, at.share) * scale.x + scale.y - window.x) / window.y, 0.0, 1.0));
  }
  if (labelsShown == 0.0) return;
  vec3 right = dFdx(texPos) * outline;
  vec3 down = dFdy(texPos) * outline;
  vec4 label = colourAt(texPos);
  if (label.a == 0.0) return;
  if (outline > 0.0) {
    bool isInside = label == colourAt(texPos + right) && label == colourAt(texPos - right)
      && label == colourAt(texPos + down) && label == colourAt(texPos - down);
    if (isInside) return;
  }
  color.rgb = mix(color.rgb, label.rgb, labelsShown);
}`;

/** Draws the planes of a NiiVue instance, which still places the volumes and arranges the views. */
export class Planes {
  constructor(nv) {
    this.nv = nv;
    this.gl = nv.gl;
    this.hasVolumesOfColours = true; // needed while 3D is visible
    this.textures = {};
    this.sampler = "";
    this.follow();
    this.upload("image", new Int16Array(1), [3, 1, 1, 1]);
    this.upload("labels", new Uint8Array(1), [3, 1, 1, 1]);
    this.useShader("isampler3D");
    this.setPalette({ R: [0], G: [0], B: [0], A: [0] });
  }

  /** Take over where NiiVue places each layer, and skip what it computes for it that is not used. */
  follow() {
    const { nv, gl } = this;
    const { refreshLayers, rgbaTex } = nv;
    const { texStorage3D, texSubImage3D, framebufferTextureLayer, bindFramebuffer, drawArrays, uniformMatrix4fv } = gl;
    const [COLOURS, OVERLAY, GRADIENT, BLURRED] = [0, 2, 6, 8].map((unit) => gl.TEXTURE0 + unit);
    const unused = new WeakSet();
    let isRefreshing = false;
    let isSpared = false;
    let matrix = null;
    nv.refreshLayers = (volume, layer) => {
      isRefreshing = true;
      try {
        refreshLayers.call(nv, volume, layer);
      } finally {
        isRefreshing = false;
      }
      if (matrix) this.place(volume, matrix);
    };
    nv.rgbaTex = (texture, unit, dims, ...rest) => {
      // NiiVue does not delete the old texture of a layer that it updates.
      if (unit === OVERLAY && !texture) gl.deleteTexture(nv.overlayTexture);
      // Gradients are for lighting in 3D, which is off.
      const isUsed = unit === GRADIENT || unit === BLURRED ? false : this.hasVolumesOfColours || ![COLOURS, OVERLAY].includes(unit);
      const wasRefreshing = isRefreshing;
      isRefreshing = false;
      const made = rgbaTex.call(nv, texture, unit, isUsed ? dims : [3, 1, 1, 1], ...rest);
      isRefreshing = wasRefreshing;
      if (!isUsed) unused.add(made);
      return made;
    };
    const sparesVoxels = () => isRefreshing && !this.hasVolumesOfColours;
    gl.texStorage3D = (...values) => sparesVoxels() || texStorage3D.apply(gl, values);
    gl.texSubImage3D = (...values) => sparesVoxels() || texSubImage3D.apply(gl, values);
    gl.framebufferTextureLayer = (...values) => {
      isSpared = unused.has(values[2]);
      if (!isSpared) framebufferTextureLayer.apply(gl, values);
    };
    gl.bindFramebuffer = (...values) => {
      isSpared = false;
      bindFramebuffer.apply(gl, values);
    };
    gl.drawArrays = (...values) => isSpared || drawArrays.apply(gl, values);
    gl.uniformMatrix4fv = (...values) => {
      if (isRefreshing) matrix = values[2];
      uniformMatrix4fv.apply(gl, values);
    };
    // NiiVue calls it after every slice, and each call waits for the graphics process.
    gl.checkFramebufferStatus = () => gl.FRAMEBUFFER_COMPLETE;
  }

  useShader(sampler) {
    if (sampler === this.sampler) return;
    this.sampler = sampler;
    this.nv.setCustomSliceShader(shaderFor(sampler));
    for (const [name, unit] of Object.entries(UNITS)) this.set(name, "uniform1i", unit);
    this.set("scale", "uniform2f", 1, 0);
    this.set("window", "uniform2f", 0, 1);
  }

  set(name, kind, ...values) {
    const shader = this.nv.customSliceShader;
    shader.use(this.gl);
    this.gl[kind](shader.uniforms[name], ...values);
  }

  /** Show an image, a label map, or both. */
  show(image, labels, shownLabels) {
    this.image = image;
    this.labels = labels;
    if (image) {
      const values = toUploadable(image.img);
      this.upload("image", values, image.hdr.dims);
      this.useShader(values instanceof Int16Array ? "isampler3D" : "sampler3D");
    }
    if (labels) this.upload("labels", toIds(labels.img), labels.hdr.dims);
    this.set("imageShown", "uniform1f", image ? 1 : 0);
    this.style(shownLabels);
  }

  upload(name, values, [, i, j, k]) {
    const { gl } = this;
    const [stored, format, type] = {
      Int16Array: [gl.R16I, gl.RED_INTEGER, gl.SHORT],
      Float32Array: [gl.R32F, gl.RED, gl.FLOAT],
      Uint8Array: [gl.R8UI, gl.RED_INTEGER, gl.UNSIGNED_BYTE],
      Uint16Array: [gl.R16UI, gl.RED_INTEGER, gl.UNSIGNED_SHORT],
    }[values.constructor.name];
    this.bind(name, gl.TEXTURE_3D);
    gl.texStorage3D(gl.TEXTURE_3D, 1, stored, i, j, k);
    gl.texSubImage3D(gl.TEXTURE_3D, 0, 0, 0, 0, i, j, k, format, type, values.subarray(0, i * j * k));
  }

  /** Replace a texture by a new one, and bind it. */
  bind(name, target) {
    const { gl } = this;
    gl.deleteTexture(this.textures[name] ?? null);
    this.textures[name] = gl.createTexture();
    gl.activeTexture(gl.TEXTURE0 + UNITS[name]);
    gl.bindTexture(target, this.textures[name]);
    gl.texParameteri(target, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(target, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  }

  /** Set where a volume lies in the view and, for the image, its window. */
  place(volume, matrix) {
    if (volume === this.image) {
      const { scl_slope: slope, scl_inter: intercept } = volume.hdr;
      this.set("imageMatrix", "uniformMatrix4fv", false, matrix);
      this.set("scale", "uniform2f", slope || 1, intercept || 0);
      this.set("window", "uniform2f", volume.cal_min, Math.max(volume.cal_max - volume.cal_min, 1e-5));
    } else if (volume === this.labels) this.set("labelsMatrix", "uniformMatrix4fv", false, matrix);
  }

  /** Set the colours of label ids; ids with 0 in A are not shown. */
  setPalette({ R, G, B, A }) {
    const { gl } = this;
    const colours = new Uint8Array(PALETTE_SIDE * PALETTE_SIDE * 4);
    A.forEach((alpha, id) => colours.set([R[id], G[id], B[id], alpha], 4 * id));
    this.bind("palette", gl.TEXTURE_2D);
    gl.texStorage2D(gl.TEXTURE_2D, 1, gl.RGBA8, PALETTE_SIDE, PALETTE_SIDE);
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, PALETTE_SIDE, PALETTE_SIDE, gl.RGBA, gl.UNSIGNED_BYTE, colours);
  }

  style({ opacity, outlinePx }) {
    this.set("labelsShown", "uniform1f", this.labels ? opacity : 0);
    this.set("outline", "uniform1f", outlinePx);
    const { renderShader, opts } = this.nv;
    opts.renderOverlayBlend = opacity;
    renderShader.use(this.gl);
    this.gl.uniform1f(renderShader.uniforms.renderOverlayBlend, opacity);
  }
}

/** The values as a type that a texture can hold: int16 if they fit, else float32. */
function toUploadable(values) {
  if (values instanceof Int16Array || values instanceof Float32Array) return values;
  return values instanceof Uint8Array || values instanceof Int8Array ? new Int16Array(values) : new Float32Array(values);
}

function toIds(values) {
  return values instanceof Uint8Array || values instanceof Uint16Array ? values : new Uint16Array(values);
}
