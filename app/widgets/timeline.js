// A slider over the stored frames, drawn and driven here; the model hears of a frame when it is chosen.

const CSS = `
:host { display: block; color: var(--fw-text); font-size: 12px; }
.bar { display: flex; align-items: center; gap: 2px; height: 32px; }
button { font: inherit; font-weight: 600; color: var(--fw-muted); background: none; border: 0; border-radius: 5px; height: 28px; padding: 0 6px; cursor: pointer; display: inline-flex; align-items: center; gap: 6px; flex: none; }
button:hover:not(:disabled) { background: var(--fw-raised); }
button:disabled { opacity: 0.4; cursor: default; }
button svg { width: 18px; height: 18px; fill: none; stroke: currentColor; stroke-width: 1.7; stroke-linecap: round; stroke-linejoin: round; }
button:focus-visible, .track:focus-visible { outline: 2px solid var(--fw-accent); outline-offset: 1px; }
.live i { width: 8px; height: 8px; border-radius: 50%; background: var(--fw-muted); }
.live[aria-pressed=true] { color: var(--fw-accent); } .live[aria-pressed=true] i { background: var(--fw-accent); }
.track { position: relative; flex: 1; min-width: 40px; height: 28px; margin: 0 10px; cursor: pointer; touch-action: none; border-radius: 4px; outline: none; }
.rail { position: absolute; left: 0; right: 0; top: 13px; height: 2px; border-radius: 1px; background: var(--fw-line); }
.ticks { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; fill: none; stroke-width: 1.5; }
.thumb { position: absolute; top: 7px; width: 14px; height: 14px; margin-left: -7px; border-radius: 50%; background: var(--fw-accent); border: 2px solid var(--fw-surface); box-sizing: border-box; }
.said { line-height: 16px; color: var(--fw-muted); font-variant-numeric: tabular-nums; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; padding: 0 8px; min-height: 16px; }
`;
const WAIT_MS = 40; // between two frames sent while the pointer drags
const ICON = (path) => `<svg viewBox="0 0 18 18" aria-hidden="true"><path d="${path}"/></svg>`;
const MARKS = { rewound: ["--fw-muted", 10, 18], flagged: ["--fw-warn", 3, 9], labelled: ["--fw-accent", 19, 25] };

export function render({ model, el }) {
  el.innerHTML = `<style>${CSS}</style><div class="bar">
    <button type="button" class="before" title="Previous flagged frame" aria-label="Previous flagged frame">${ICON("M12 4 7 9l5 5M5 4v10")}</button>
    <div class="track" role="slider" tabindex="0" aria-label="Stored frames" aria-valuemin="1"><div class="rail"></div>
      <svg class="ticks" viewBox="0 0 1000 28" preserveAspectRatio="none" aria-hidden="true"></svg><div class="thumb"></div></div>
    <button type="button" class="after" title="Next flagged frame" aria-label="Next flagged frame">${ICON("m6 4 5 5-5 5M13 4v10")}</button>
    <button type="button" class="live" title="Show the newest frame"><i></i>Live</button></div><div class="said"></div>`;
  const part = (name) => el.querySelector(name);
  const track = part(".track"), thumb = part(".thumb"), ticks = part(".ticks"), said = part(".said"), live = part(".live");
  let chosen = model.value, dragging = false, timer = 0;

  const share = (frame) => (model.last < 2 ? 1 : Math.min((frame - 1) / (model.last - 1), 1));
  function show() {
    const frame = dragging ? chosen : model.value;
    thumb.style.left = `${100 * (frame ? share(frame) : 1)}%`;
    live.setAttribute("aria-pressed", String(!frame));
    track.setAttribute("aria-valuemax", model.last);
    track.setAttribute("aria-valuenow", frame || model.last);
    track.setAttribute("aria-valuetext", model.text);
    said.textContent = model.text;
  }
  function mark() {
    ticks.innerHTML = Object.entries(MARKS).map(([name, [color, from, to]]) =>
      `<path class="${name}" vector-effect="non-scaling-stroke" style="stroke:var(${color})" d="${model[name].map((f) => `M${(1000 * share(f)).toFixed(1)} ${from}V${to}`).join("")}"/>`).join("");
    part(".before").disabled = part(".after").disabled = !model.flagged.length && !model.labelled.length;
  }
  function send() { timer = 0; if (model.value !== chosen) model.value = chosen; }
  function go(frame) {
    chosen = frame >= model.last && !dragging ? 0 : Math.max(1, Math.min(frame, model.last));
    show();
    timer ||= setTimeout(send, dragging ? WAIT_MS : 0);
  }
  const at = (e) => { const box = track.getBoundingClientRect(); return 1 + Math.round(Math.min(Math.max((e.clientX - box.left) / box.width, 0), 1) * (model.last - 1)); };
  track.addEventListener("pointerdown", (e) => { dragging = true; track.setPointerCapture(e.pointerId); track.focus(); go(at(e)); });
  track.addEventListener("pointermove", (e) => { if (dragging) go(at(e)); });
  for (const end of ["pointerup", "pointercancel"]) track.addEventListener(end, () => { dragging = false; clearTimeout(timer); send(); show(); });
  track.addEventListener("keydown", (e) => {
    const now = model.value || model.last, page = Math.max(1, Math.round(model.last / 10));
    const to = { ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1, PageDown: now - page, PageUp: now + page, Home: 1, End: model.last }[e.key];
    if (to === undefined) return;
    e.preventDefault(); e.stopPropagation();
    go(to);
  });
  part(".before").addEventListener("click", () => model.send_msg(-1));
  part(".after").addEventListener("click", () => model.send_msg(1));
  live.addEventListener("click", () => { model.value = 0; });
  for (const name of ["value", "last", "text"]) model.on(name, show);
  for (const name of ["last", "flagged", "labelled", "rewound"]) model.on(name, mark);
  model.on("remove", () => clearTimeout(timer));
  show(); mark();
}
