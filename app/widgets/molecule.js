// Atoms in the page: NGL where there is WebGL, a flat projection where there is none.
// `render` wires the model to a scene; a scene draws arrays and knows nothing of the model.

const BALL = 0.42; // radius of a ball, in covalent radii
const STICK = 0.12; // Å
const FORM = 1.18, BREAK = 1.32; // a bond forms below, breaks above this multiple of Σ radii

const CSS = `
:host { display: block; position: relative; }
.stage { position: absolute; inset: 0; overflow: hidden; border-radius: inherit; }
@media (max-width: 620px) { .stage { bottom: 58px; } }
.stage canvas { outline: none; display: block; }
.overlay { position: absolute; font-size: 12px; line-height: 1.35; pointer-events: none; user-select: none; }
.legend { left: 18px; bottom: 14px; width: 240px; }
.legend .bar { height: 8px; border-radius: 4px; margin: 5px 0 3px; position: relative; }
.legend .mark { position: absolute; top: -3px; bottom: -3px; width: 2px; margin-left: -1px; border-radius: 1px; }
.legend .ticks { position: relative; height: 1.35em; font-variant-numeric: tabular-nums; }
.legend .ticks span { position: absolute; white-space: nowrap; }
.elements { display: flex; gap: 12px; flex-wrap: wrap; }
.elements span { display: inline-flex; align-items: center; gap: 5px; }
.elements i { width: 10px; height: 10px; border-radius: 50%; display: inline-block; }
.top { left: 18px; top: 16px; right: 150px; display: flex; flex-direction: column; align-items: flex-start; gap: 8px; }
.measure { display: flex; align-items: center; gap: 4px; padding: 3px 4px 3px 10px; border-radius: 6px; min-height: 26px;
  background: var(--fw-raised, #eef0f3); color: var(--fw-text, #1b2430); pointer-events: auto; font-variant-numeric: tabular-nums; }
.measure b { font-weight: 600; margin: 0 6px 0 2px; white-space: nowrap; }
button { font: inherit; color: var(--fw-accent, #0f6e7c); background: none; border: 0; border-radius: 5px; padding: 4px 7px; cursor: pointer; pointer-events: auto; font-weight: 600; white-space: nowrap; }
button:hover { background: color-mix(in srgb, currentColor 12%, transparent); }
button:focus-visible { outline: 2px solid currentColor; outline-offset: -1px; }
.tools { right: 10px; top: 52px; display: flex; flex-direction: column; gap: 2px; }
.tools button { width: 32px; height: 32px; padding: 6px; color: var(--fw-muted, #5d6875); }
.tools svg { display: block; width: 20px; height: 20px; fill: none; stroke: currentColor; stroke-width: 1.6; stroke-linecap: round; stroke-linejoin: round; }
.picks { inset: 0; width: 100%; height: 100%; overflow: hidden; fill: none; stroke: var(--fw-accent, #0f6e7c); stroke-width: 2.5; }
.picks line { stroke-dasharray: 5 4; stroke-width: 1.6; }
.picks text { fill: var(--fw-text, #1b2430); stroke: var(--fw-surface, #fff); stroke-width: 4; paint-order: stroke; font-size: 14px; font-weight: 600; text-anchor: middle; dominant-baseline: middle; }
.tip { padding: 3px 8px; border-radius: 5px; white-space: nowrap; transform: translate(12px, -50%);
       font-variant-numeric: tabular-nums; }
[hidden] { display: none !important; }
`;

// ---- arrays -----------------------------------------------------------------------------------

function floats(bytes) {
  if (!bytes) return new Float32Array(0);
  const view = bytes instanceof ArrayBuffer ? new Uint8Array(bytes) : new Uint8Array(bytes.buffer ?? bytes, bytes.byteOffset ?? 0, bytes.byteLength);
  return new Float32Array(view.slice().buffer);
}

function hex(color) {
  const v = parseInt(color.slice(1), 16);
  return [(v >> 16) / 255, ((v >> 8) & 255) / 255, (v & 255) / 255];
}

function onScale(value, stops, max) {
  const t = Math.min(Math.max(value / max, 0), 1) * (stops.length - 1);
  const k = Math.min(Math.floor(t), stops.length - 2), f = t - k;
  return stops[k].map((low, c) => low + f * (stops[k + 1][c] - low));
}

function inverse(m) {
  const [a, b, c, d, e, f, g, h, i] = m;
  const det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  return [e * i - f * h, c * h - b * i, b * f - c * e, f * g - d * i, a * i - c * g, c * d - a * f,
    d * h - e * g, b * g - a * h, a * e - b * d].map((v) => v / det);
}

function times(v, m) { // row vector times row-major 3x3
  return [0, 1, 2].map((c) => v[0] * m[c] + v[1] * m[3 + c] + v[2] * m[6 + c]);
}

// Along open directions the atoms are held in the middle; along periodic ones wrapped into the cell.
function placed(positions, cell, pbc) {
  const out = new Float32Array(positions.length), n = positions.length / 3;
  const mid = [0, 0, 0];
  for (let i = 0; i < positions.length; i++) mid[i % 3] += positions[i] / n;
  if (cell.length === 9) {
    const back = inverse(cell), middle = times(mid, back);
    const from = pbc.map((periodic, c) => (periodic ? 0.5 : middle[c]));
    for (let i = 0; i < n; i++) {
      const s = times(positions.subarray(3 * i, 3 * i + 3), back)
        .map((v, c) => (pbc[c] ? v - Math.floor(v + 0.06) : v) - from[c]); // atoms on a face do not jump
      times(s, cell).forEach((v, c) => { out[3 * i + c] = v; });
    }
    return out;
  }
  for (let i = 0; i < positions.length; i++) out[i] = positions[i] - mid[i % 3];
  return out;
}

// Pairs (i < j) near enough to be bonded; a bond that exists is kept until it is clearly broken.
function bonds(positions, radii, before) {
  const n = radii.length, reach = 2 * Math.max(...radii, 0.1) * BREAK, bins = new Map(), found = [];
  const key = (x, y, z) => ((x + 4096) * 8192 + y + 4096) * 8192 + z + 4096;
  const bin = (i) => [0, 1, 2].map((c) => Math.floor(positions[3 * i + c] / reach));
  for (let i = 0; i < n; i++) {
    const k = key(...bin(i));
    bins.has(k) ? bins.get(k).push(i) : bins.set(k, [i]);
  }
  for (let i = 0; i < n; i++) {
    const [bx, by, bz] = bin(i);
    for (let x = bx - 1; x <= bx + 1; x++) for (let y = by - 1; y <= by + 1; y++) for (let z = bz - 1; z <= bz + 1; z++)
      for (const j of bins.get(key(x, y, z)) ?? []) {
        if (j <= i) continue;
        const d = Math.hypot(positions[3 * i] - positions[3 * j], positions[3 * i + 1] - positions[3 * j + 1], positions[3 * i + 2] - positions[3 * j + 2]);
        const limit = (radii[i] + radii[j]) * (before.has(i * n + j) ? BREAK : FORM);
        if (d < limit) found.push(i * n + j);
      }
  }
  return found;
}

// ---- measuring --------------------------------------------------------------------------------

const KINDS = { 2: ["Distance", "Å", 3], 3: ["Angle", "°", 1], 4: ["Dihedral", "°", 1] };
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const norm = (a) => Math.hypot(...a);
const degrees = (y, x) => (180 / Math.PI) * Math.atan2(y, x);

// The shortest of the images of a vector.
function nearest(vector, cell, pbc) {
  if (cell.length !== 9 || !pbc.some(Boolean)) return vector;
  const s = times(vector, inverse(cell)).map((v, c) => (pbc[c] ? v - Math.round(v) : v));
  const reach = pbc.map((periodic) => (periodic ? [-1, 0, 1] : [0]));
  let best = times(s, cell);
  for (const i of reach[0]) for (const j of reach[1]) for (const k of reach[2]) {
    const image = times([s[0] + i, s[1] + j, s[2] + k], cell);
    if (norm(image) < norm(best) - 1e-9) best = image;
  }
  return best;
}

// Distance (Å), angle or dihedral (°) of two to four atoms.
function coordinate(atoms, positions, cell, pbc) {
  const at = (i) => positions.subarray(3 * i, 3 * i + 3);
  const [a, b, c] = atoms.slice(1).map((j, k) => nearest([0, 1, 2].map((x) => at(j)[x] - at(atoms[k])[x]), cell, pbc));
  if (atoms.length === 2) return norm(a);
  if (atoms.length === 3) return degrees(norm(cross(a, b)), -dot(a, b));
  return degrees(dot(a, cross(b, c)) * norm(b), dot(cross(a, b), cross(b, c)));
}

function edges(cell) {
  const corner = (i, j, k) => [0, 1, 2].map((c) => (i - 0.5) * cell[c] + (j - 0.5) * cell[3 + c] + (k - 0.5) * cell[6 + c]);
  const lines = [];
  for (const a of [0, 1]) for (const b of [0, 1])
    lines.push([corner(0, a, b), corner(1, a, b)], [corner(a, 0, b), corner(a, 1, b)], [corner(a, b, 0), corner(a, b, 1)]);
  return lines;
}

// ---- scenes -----------------------------------------------------------------------------------

function hasWebGL() {
  try {
    const canvas = document.createElement("canvas");
    return Boolean(canvas.getContext("webgl2") ?? canvas.getContext("webgl"));
  } catch { return false; }
}

// nglview's bundle is an AMD module: a `define` is lent to it while it loads.
function loadEngine(address) {
  window.__flywiseNGL ??= new Promise((resolve, reject) => {
    const before = window.define, script = document.createElement("script");
    const restore = () => { if (before === undefined) delete window.define; else window.define = before; };
    let engine;
    window.define = (_, factory) => {
      const Empty = class {};
      engine = factory({ DOMWidgetModel: Empty, DOMWidgetView: Empty, WidgetModel: Empty, WidgetView: Empty }).NGL;
    };
    window.define.amd = {};
    script.src = new URL(address, document.baseURI).href;
    script.onload = () => { restore(); engine ? resolve(engine) : reject(new Error("no NGL in " + address)); };
    script.onerror = () => { restore(); window.__flywiseNGL = undefined; reject(new Error("could not load " + address)); };
    document.head.append(script);
  });
  return window.__flywiseNGL;
}

// NGL listens on the document and compares targets, which a shadow root hides: listen on the canvas.
function listenOnCanvas(observer, canvas) {
  const handlers = { wheel: "_onMousewheel", mousemove: "_onMousemove", mousedown: "_onMousedown", mouseup: "_onMouseup",
    contextmenu: "_onContextmenu", touchstart: "_onTouchstart", touchend: "_onTouchend", touchmove: "_onTouchmove" };
  for (const old of ["mousewheel", "MozMousePixelScroll"]) document.removeEventListener(old, observer._onMousewheel);
  for (const [event, name] of Object.entries(handlers)) {
    document.removeEventListener(event, observer[name]);
    canvas.addEventListener(event, observer[name], { passive: false });
  }
  canvas.addEventListener("pointerdown", (e) => canvas.setPointerCapture(e.pointerId)); // drags may leave the canvas
}

// Draws at once, as NGL's requestRender does at the next frame of the page: NGL has to know that the
// picture moved, so that it is smoothed (supersampled) when it has been still for half a second.
function now(viewer) {
  viewer.stats.begin();
  viewer.isStill = false;
  viewer.render();
  viewer.stats.update();
}

// Where WebGL runs in software, multisampling takes a third of the time of a frame; NGL smooths the
// picture by itself once it is still.
function withoutMultisampling(make) {
  const prototype = HTMLCanvasElement.prototype, usual = prototype.getContext;
  prototype.getContext = function (kind, options) { return usual.call(this, kind, options && { ...options, antialias: false }); };
  try { return make(); } finally { prototype.getContext = usual; }
}

function solidScene(NGL, holder) {
  const stage = withoutMultisampling(() => new NGL.Stage(holder, { backgroundColor: "white", cameraType: "perspective", ambientIntensity: 0.5, lightIntensity: 1.0, fogNear: 60, fogFar: 100, clipDist: 0, sampleLevel: 0, tooltip: false }));
  const canvas = stage.viewer.renderer.domElement;
  listenOnCanvas(stage.mouseObserver, canvas);
  for (const pick of ["hoverPick", "clickPick-left", "clickPick-middle", "clickPick-right"]) stage.mouseControls.remove(pick);
  let atoms, sticks, boxed, frame = [], fitted = false, nAtoms = 0, nSticks = 0;

  const layer = (name, buffer) => {
    const shape = new NGL.Shape(name, { disableImpostor: false });
    shape.addBuffer(buffer);
    const component = stage.addComponentFromObject(shape);
    component.addRepresentation("buffer", { side: "front" });
    return { component, buffer };
  };
  const gone = (old) => { if (old) stage.removeComponent(old.component); };

  function stickArrays(s) {
    const n = s.bonds.length, one = new Float32Array(3 * n), two = new Float32Array(3 * n), c1 = new Float32Array(3 * n), c2 = new Float32Array(3 * n);
    s.bonds.forEach((code, b) => {
      const i = Math.floor(code / s.radii.length), j = code % s.radii.length;
      one.set(s.positions.subarray(3 * i, 3 * i + 3), 3 * b); two.set(s.positions.subarray(3 * j, 3 * j + 3), 3 * b);
      c1.set(s.colors.subarray(3 * i, 3 * i + 3), 3 * b); c2.set(s.colors.subarray(3 * j, 3 * j + 3), 3 * b);
    });
    return { position1: one, position2: two, color: c1, color2: c2, radius: new Float32Array(n).fill(STICK) };
  }

  return {
    kind: "ngl", canvas,
    setup(s) {
      gone(atoms); gone(sticks); frame.forEach(gone);
      atoms = sticks = boxed = undefined; frame = []; fitted = false; nAtoms = nSticks = 0;
      if (s.cell.length === 9) {
        const lines = edges(s.cell), grey = new Float32Array(3 * lines.length).fill(0.55);
        frame = [layer("cell", new NGL.CylinderBuffer({ position1: new Float32Array(lines.map((l) => l[0]).flat()), position2: new Float32Array(lines.map((l) => l[1]).flat()),
          color: grey, color2: grey, radius: new Float32Array(lines.length).fill(0.03) }, {}))];
      }
    },
    draw(s) {
      if (nAtoms !== s.radii.length) {
        gone(atoms);
        nAtoms = s.radii.length;
        atoms = layer("atoms", new NGL.SphereBuffer({ position: s.positions, color: s.colors, radius: new Float32Array(s.radii.map((r) => BALL * r + 0.1)) }, {}));
      } else atoms.buffer.setAttributes({ position: s.positions, color: s.colors });
      const arrays = stickArrays(s);
      if (nSticks !== s.bonds.length) {
        gone(sticks);
        nSticks = s.bonds.length;
        sticks = nSticks ? layer("bonds", new NGL.CylinderBuffer(arrays, {})) : undefined;
      } else if (nSticks) sticks.buffer.setAttributes(arrays);
      if (frame.length && s.cell !== boxed) {
        boxed = s.cell;
        const lines = edges(boxed);
        frame[0].buffer.setAttributes({ position1: new Float32Array(lines.map((l) => l[0]).flat()), position2: new Float32Array(lines.map((l) => l[1]).flat()) });
      }
      if (!fitted) { fitted = true; this.fit(s); if (s.camera) this.turn(s.camera); }
      now(stage.viewer);
    },
    fit(s) {
      const v = s.view, m = new NGL.Matrix4();
      stage.viewerControls.rotate(new NGL.Quaternion().setFromRotationMatrix(stage.viewer.rotationGroup.matrix.clone().invert()));
      m.set(v[0], v[1], v[2], 0, v[3], v[4], v[5], 0, v[6], v[7], v[8], 0, 0, 0, 0, 1);
      stage.autoView();
      stage.viewerControls.rotate(new NGL.Quaternion().setFromRotationMatrix(m));
      stage.viewerControls.zoom(-0.25); // room to move and to stretch
    },
    // Place on the canvas; depth grows towards the eye; pixels per Å there.
    project(p) {
      const viewer = stage.viewer, point = new NGL.Vector3(p[0], p[1], p[2]);
      const at = stage.viewerControls.getPositionOnCanvas(point);
      const away = stage.viewerControls.getCameraDistance() + point.add(viewer.translationGroup.position).applyMatrix4(viewer.rotationGroup.matrix).z;
      const half = Math.tan((viewer.perspectiveCamera.fov * Math.PI) / 360) * away;
      return { x: at.x, y: canvas.clientHeight - at.y, depth: -away, pixels: viewer.height / 2 / half };
    },
    onTurn(call) { stage.viewerControls.signals.changed.add(call); },
    camera: () => Array.from(stage.viewerControls.getOrientation().elements),
    turn(camera) { stage.viewerControls.orient(new NGL.Matrix4().fromArray(camera)); },
    image: (factor) => stage.makeImage({ factor, antialias: true, trim: false, transparent: false }),
    paint(background) { stage.setParameters({ backgroundColor: background }); },
    resize() { stage.handleResize(); },
    dispose() { stage.dispose(); },
  };
}

function flatScene(holder) {
  const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
  canvas.style.cssText = "width:100%;height:100%";
  holder.append(canvas);
  let last, zoom = 40, background = "#ffffff", ratio = window.devicePixelRatio || 1;
  const flat = (p) => {
    const v = last.view, row = (k) => v[k] * p[0] + v[k + 1] * p[1] + v[k + 2] * p[2];
    return { x: canvas.clientWidth / 2 + zoom * row(0), y: canvas.clientHeight / 2 - zoom * row(3), depth: row(6), pixels: zoom };
  };
  const css = (colors, i) => `rgb(${[0, 1, 2].map((c) => Math.round(255 * colors[3 * i + c])).join(",")})`;
  const scene = {
    kind: "flat", canvas,
    setup() { last = undefined; },
    draw(s) {
      const first = last === undefined;
      last = s;
      if (first) scene.resize();
      const n = s.radii.length, at = [];
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.fillStyle = background; pen.fillRect(0, 0, canvas.clientWidth, canvas.clientHeight);
      for (let i = 0; i < n; i++) at.push(flat(s.positions.subarray(3 * i, 3 * i + 3)));
      const line = (a, b, color, width) => { pen.strokeStyle = color; pen.lineWidth = width; pen.beginPath(); pen.moveTo(a.x, a.y); pen.lineTo(b.x, b.y); pen.stroke(); };
      if (s.cell.length === 9) for (const [a, b] of edges(s.cell)) line(flat(a), flat(b), "#8a94a0", 1);
      for (const code of s.bonds) line(at[Math.floor(code / n)], at[code % n], "#8a94a0", Math.max(2, 2 * STICK * zoom));
      for (const i of [...at.keys()].sort((a, b) => at[a].depth - at[b].depth)) {
        pen.fillStyle = css(s.colors, i); pen.strokeStyle = "rgba(0,0,0,0.35)"; pen.lineWidth = 1;
        pen.beginPath(); pen.arc(at[i].x, at[i].y, (BALL * s.radii[i] + 0.1) * zoom, 0, 2 * Math.PI); pen.fill(); pen.stroke();
      }
    },
    project: (p) => flat(p),
    onTurn() {},
    camera: () => null,
    turn() {},
    fit() { scene.resize(); },
    image(factor) {
      const before = window.devicePixelRatio || 1;
      ratio = factor * before; scene.resize();
      const done = new Promise((resolve) => canvas.toBlob(resolve));
      ratio = before; scene.resize();
      return done;
    },
    paint(color) { background = color; if (last) scene.draw(last); },
    resize() {
      canvas.width = Math.max(1, canvas.clientWidth * ratio); canvas.height = Math.max(1, canvas.clientHeight * ratio);
      if (!last) return;
      let reach = 1.5;
      for (let i = 0; i < last.positions.length; i += 3) reach = Math.max(reach, Math.hypot(...last.positions.subarray(i, i + 3)) + 1);
      zoom = Math.min(canvas.clientWidth, canvas.clientHeight) / (2 * reach);
      scene.draw(last);
    },
    dispose() { canvas.remove(); },
  };
  return scene;
}

// ---- words around the picture -----------------------------------------------------------------

const ICONS = {
  save: '<svg viewBox="0 0 20 20" aria-hidden="true"><path d="M3 6.5h3l1.5-2h5l1.5 2h3v9H3z"/><circle cx="10" cy="10.8" r="2.7"/></svg>',
  fit: '<svg viewBox="0 0 20 20" aria-hidden="true"><path d="M3 7V3h4M13 3h4v4M17 13v4h-4M7 17H3v-4"/><circle cx="10" cy="10" r="1.6"/></svg>',
};

function overlays(el) {
  const add = (name, parent = el) => { const d = document.createElement("div"); d.className = name; parent.append(d); return d; };
  const legend = add("overlay legend"), top = add("overlay top"), note = add("note", top), measure = add("measure", top), tools = add("overlay tools"), tip = add("overlay tip");
  const picks = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  picks.setAttribute("class", "overlay picks");
  picks.setAttribute("aria-hidden", "true");
  legend.before(picks);
  tip.hidden = measure.hidden = true;
  const button = (parent, label, inner, click) => {
    const b = document.createElement("button");
    b.type = "button"; b.innerHTML = inner; b.title = label;
    if (inner !== label) b.setAttribute("aria-label", label);
    b.addEventListener("click", click);
    parent.append(b);
    return b;
  };
  const ink = (dark) => (dark ? { text: "#e4e9ef", muted: "#98a4b1", tip: "#2b3541" } : { text: "#1b2430", muted: "#5d6875", tip: "#ffffff" });
  const number = (v) => String(Number(v.toPrecision(2)));

  function legendOf(model, known) {
    const tone = ink(model.dark);
    legend.style.color = tone.muted;
    if (model.colour_by === "element" || !known) {
      const seen = new Map(model.symbols.map((s, i) => [s, model.element_colors[i]]));
      legend.innerHTML = `<div class="elements">${[...seen].map(([s, c]) => `<span><i style="background:rgb(${c.map((v) => Math.round(255 * v)).join(",")})"></i>${s}</span>`).join("")}</div>`;
      return;
    }
    const mark = model.value_mark === null ? "" : `<div class="mark" style="left:${(100 * model.value_mark) / model.value_max}%;background:${tone.text}"></div>`;
    const tick = model.value_mark === null ? "" : `<span style="left:${(100 * model.value_mark) / model.value_max}%;transform:translateX(-50%);color:${tone.text}">tolerance ${number(model.value_mark)}</span>`;
    legend.innerHTML = `<div style="color:${tone.text}">${model.value_title}, ${model.value_unit}</div><div class="bar" style="background:linear-gradient(90deg,${model.scale.join(",")})">${mark}</div>
      <div class="ticks"><span style="left:0">0</span>${tick}<span style="right:0">${number(model.value_max)}</span></div>`;
  }
  function noteOf(model, scene) {
    const flat = scene.kind === "flat" ? "This browser has no WebGL: flat picture, 3D view off. " : "";
    note.textContent = flat + model.note;
    note.hidden = !note.textContent;
    note.style.color = ink(model.dark).muted;
  }
  function tipAt(model, text, x, y) {
    const tone = ink(model.dark);
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    tip.style.cssText = `left:${x}px;top:${y}px;background:${tone.tip};color:${tone.text};box-shadow:0 1px 5px rgba(0,0,0,.3)`;
  }

  // Rings around the picked atoms, lines between them, and the value in the middle.
  function ringsOf(places, text) {
    const lines = places.slice(1).map((b, k) => `<line x1="${places[k].x}" y1="${places[k].y}" x2="${b.x}" y2="${b.y}"/>`);
    const rings = places.map((p) => `<circle cx="${p.x}" cy="${p.y}" r="${p.radius}"/>`);
    const mid = (axis) => places.reduce((sum, p) => sum + p[axis], 0) / places.length;
    const label = text ? `<text x="${mid("x")}" y="${mid("y")}">${text}</text>` : "";
    picks.innerHTML = lines.join("") + rings.join("") + label;
  }
  return { legendOf, noteOf, tipAt, ringsOf, button, measure, tools };
}

// The bar that names what is measured, with its buttons.
function measuring(model, words, clear) {
  const { measure, button } = words, said = document.createElement("span"), value = document.createElement("b");
  said.setAttribute("aria-live", "polite");
  measure.append(said, value);
  const trace = button(measure, "Trace", "Trace", () => { model.traced = traced() ? [] : [...model.picked]; });
  button(measure, "Clear the picked atoms (Escape)", "✕", clear);
  const traced = () => model.picked.join() === model.traced.join();
  return (text) => {
    const { picked, symbols } = model, kind = KINDS[picked.length];
    measure.hidden = !picked.length;
    const names = picked.map((i) => `${symbols[i]}${i + 1}`).join("–");
    const words = kind ? `${kind[0]} ${names}` : `${names} · pick another atom`;
    if (said.textContent !== words) said.textContent = words;
    value.textContent = text;
    trace.hidden = value.hidden = !kind;
    trace.textContent = traced() ? "Stop trace" : "Trace";
    trace.title = traced() ? "Remove the trace of this coordinate" : "Draw this coordinate over the run";
  };
}

// The camera of each campaign, kept by the browser tab.
function cameras(key) {
  const name = "flywise-camera:" + key;
  return {
    stored() { try { return JSON.parse(sessionStorage.getItem(name)); } catch { return null; } },
    store(camera) { if (camera) try { sessionStorage.setItem(name, JSON.stringify(camera)); } catch { /* a full or forbidden store keeps none */ } },
    forget() { try { sessionStorage.removeItem(name); } catch { /* as above */ } },
  };
}

// The atom under a point of the canvas: of those whose ball covers it, the nearest to the eye.
function pick(scene, s, x, y) {
  let best = -1, front = -Infinity;
  for (let i = 0; i < s.radii.length; i++) {
    const at = scene.project(s.positions.subarray(3 * i, 3 * i + 3));
    const reach = Math.max((BALL * s.radii[i] + 0.1) * at.pixels, 6);
    if (Math.hypot(at.x - x, at.y - y) < reach && at.depth > front) { front = at.depth; best = i; }
  }
  return best;
}

export async function render({ model, el }) {
  const style = document.createElement("style"), holder = document.createElement("div");
  style.textContent = CSS;
  holder.className = "stage";
  holder.setAttribute("role", "img");
  holder.setAttribute("aria-label", "Moving atoms, coloured by the bound on their force error");
  el.append(style, holder);
  const words = overlays(el);
  let scene;
  try {
    scene = hasWebGL() ? solidScene(await loadEngine(model.engine), holder) : flatScene(holder);
  } catch (error) {
    console.warn("3D view off:", error);
    scene = flatScene(holder);
  }
  holder.dataset.engine = scene.kind;
  holder.dataset.frames = "0";
  let now, values, pending = 0, known, stale = true, storing = 0;
  const kept = cameras(model.camera_key);
  holder.project = (i) => scene.project(now.positions.subarray(3 * i, 3 * i + 3));

  // ---- picking
  const clear = () => { model.picked = []; };
  const say = measuring(model, words, clear);
  function mark() {
    if (!now) return;
    const picked = model.picked.filter((i) => i < now.radii.length), kind = KINDS[picked.length];
    const text = kind ? `${coordinate(picked, now.raw, now.cell, model.pbc).toFixed(kind[2])} ${kind[1]}` : "";
    words.ringsOf(picked.map((i) => { const at = holder.project(i); return { ...at, radius: at.pixels * (BALL * now.radii[i] + 0.1) + 3 }; }), text);
    say(text);
  }
  function choose(i) {
    const picked = model.picked;
    model.picked = picked.includes(i) ? picked.filter((j) => j !== i) : picked.length === 4 ? [i] : [...picked, i];
  }
  let pressed = null;
  scene.canvas.addEventListener("pointerdown", (e) => { pressed = e.button === 0 && e.isPrimary ? [e.offsetX, e.offsetY] : null; });
  scene.canvas.addEventListener("pointerup", (e) => {
    if (!pressed || !now || Math.hypot(e.offsetX - pressed[0], e.offsetY - pressed[1]) > 4) return;
    const i = pick(scene, now, e.offsetX, e.offsetY);
    if (i >= 0) choose(i);
  });
  const escape = (e) => { if (e.key === "Escape" && model.picked.length) clear(); };
  window.addEventListener("keydown", escape);

  // ---- camera and picture
  scene.onTurn(() => {
    mark();
    clearTimeout(storing);
    storing = setTimeout(() => kept.store(scene.camera()), 300);
  });
  words.button(words.tools, "Save picture", ICONS.save, async () => {
    const link = document.createElement("a"), address = URL.createObjectURL(await scene.image(2));
    link.href = address; link.download = `${model.picture_name || "picture"}.png`; link.click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  });
  words.button(words.tools, "Reset view", ICONS.fit, () => { kept.forget(); if (now) scene.fit(now); soon(); });

  function colors() {
    const n = model.symbols.length, out = new Float32Array(3 * n), stops = model.scale.map(hex);
    for (let i = 0; i < n; i++)
      out.set(known && model.colour_by === "value" ? onScale(values[i], stops, model.value_max) : model.element_colors[i], 3 * i);
    return out;
  }
  function draw() {
    pending = 0;
    const raw = floats(model.positions), n = model.symbols.length;
    const cell = model.box.length === 9 ? model.box : model.cell;
    if (!n || raw.length !== 3 * n) return;
    values = floats(model.values);
    const before = known;
    known = values.length === n && values.every(Number.isFinite);
    const old = new Set(stale ? [] : now?.bonds ?? []);
    now = { raw, positions: placed(raw, cell, model.pbc), radii: model.radii, cell, view: model.view, camera: stale ? kept.stored() : null };
    now.bonds = bonds(now.positions, now.radii, old);
    now.colors = colors();
    if (stale) { scene.setup(now); stale = false; }
    scene.draw(now);
    mark();
    if (before !== known) words.legendOf(model, known);
    holder.dataset.frames = String(Number(holder.dataset.frames) + 1);
  }
  const soon = () => { pending ||= requestAnimationFrame(draw); };
  const retopology = () => { stale = true; soon(); };
  const repaint = () => { scene.paint(model.canvas_color); words.legendOf(model, known); words.noteOf(model, scene); soon(); };

  for (const name of ["positions", "values", "box"]) model.on(name, soon);
  for (const name of ["symbols", "cell", "pbc"]) model.on(name, retopology);
  for (const name of ["picked", "traced"]) model.on(name, mark);
  for (const name of ["dark", "canvas_color", "colour_by", "value_max", "value_mark", "value_title", "note"]) model.on(name, repaint);
  scene.canvas.addEventListener("pointermove", (e) => {
    const i = now && !e.buttons ? pick(scene, now, e.offsetX, e.offsetY) : -1;
    const value = i >= 0 && known ? ` · ± ${values[i].toPrecision(2)} ${model.value_unit}` : "";
    words.tipAt(model, i < 0 ? "" : `${model.symbols[i]}${i + 1}${value}`, e.offsetX, e.offsetY);
  });
  scene.canvas.addEventListener("pointerleave", () => words.tipAt(model, ""));
  const observer = new ResizeObserver(() => { scene.resize(); mark(); });
  observer.observe(holder);
  model.on("remove", () => { observer.disconnect(); cancelAnimationFrame(pending); clearTimeout(storing); window.removeEventListener("keydown", escape); scene.dispose(); });
  repaint();
}
