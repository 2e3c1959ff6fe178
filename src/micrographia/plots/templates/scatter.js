// The scatter of latents: canvas, no library. DATA: columns (name, values, classes or null), sprite, palette.
const DATA = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const canvas = byId("points"), patch = byId("patch");
const N = DATA.count;
const sprite = new Image();
let view = null; // {x0, x1, y0, y1} in data units
let hovered = -1, pinned = -1;
let hidden = new Set(); // classes switched off
let colours = [];

const columnOf = (id) => DATA.columns[Number(byId(id).value)];
const margin = { left: 62, right: 12, top: 12, bottom: 44 };

function fill(id, chosen, numeric) {
  DATA.columns.forEach((column, i) => {
    if (numeric && column.classes) return;
    const option = document.createElement("option");
    option.value = i;
    option.textContent = column.name;
    option.selected = column.name === chosen;
    byId(id).append(option);
  });
}

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) if (v !== null) { low = Math.min(low, v); high = Math.max(high, v); }
  if (!(high >= low)) return [-1, 1];
  const room = (high - low) * 0.04 || 0.5;
  return [low - room, high + room];
}

function home() {
  const [x0, x1] = extent(columnOf("x").values), [y0, y1] = extent(columnOf("y").values);
  view = { x0, x1, y0, y1 };
  draw();
}

function size() {
  return { width: canvas.clientWidth, height: canvas.clientHeight };
}

function toScreen() {
  const { width, height } = size();
  const w = width - margin.left - margin.right, h = height - margin.top - margin.bottom;
  return {
    x: (v) => margin.left + ((v - view.x0) / (view.x1 - view.x0)) * w,
    y: (v) => margin.top + (1 - (v - view.y0) / (view.y1 - view.y0)) * h,
    vx: (p) => view.x0 + ((p - margin.left) / w) * (view.x1 - view.x0),
    vy: (p) => view.y0 + (1 - (p - margin.top) / h) * (view.y1 - view.y0),
  };
}

function ticks(low, high, most) {
  const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) found.push(k * step);
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return found.map((v) => [v, decimals > 6 ? v.toExponential(1) : (v + 0).toFixed(decimals)]);
}

function ramp(t) {
  const stops = DATA.ramp, at = Math.min(Math.max(t, 0), 1) * (stops.length - 1);
  const i = Math.min(Math.floor(at), stops.length - 2), f = at - i;
  const mix = stops[i].map((a, k) => Math.round(a + f * (stops[i + 1][k] - a)));
  return `rgb(${mix})`;
}

function recolour() {
  const column = columnOf("colour"), legend = byId("legend");
  legend.replaceChildren();
  hidden = new Set();
  if (column.classes) {
    const counts = column.classes.map(() => 0);
    for (const v of column.values) if (v !== null) counts[v]++;
    colours = column.values.map((v) => (v === null ? "#999" : DATA.palette[v % DATA.palette.length]));
    column.classes.forEach((name, k) => legend.append(key(name, counts[k], k)));
    return;
  }
  const sorted = column.values.filter((v) => v !== null).sort((a, b) => a - b);
  const low = sorted[Math.floor(0.02 * (sorted.length - 1))] ?? 0;
  const high = sorted[Math.ceil(0.98 * (sorted.length - 1))] ?? 1;
  const span = high - low || 1;
  colours = column.values.map((v) => (v === null ? "#999" : ramp((v - low) / span)));
  const bar = document.createElement("canvas");
  bar.id = "bar";
  bar.width = 200;
  bar.height = 14;
  const pen = bar.getContext("2d");
  for (let i = 0; i < 200; i++) { pen.fillStyle = ramp(i / 199); pen.fillRect(i, 0, 1, 14); }
  const title = document.createElement("div"), ends = document.createElement("div");
  title.textContent = column.name;
  ends.className = "ends";
  for (const v of [low, high]) { const end = document.createElement("span"); end.textContent = short(v); ends.append(end); }
  legend.append(title, bar, ends);
}

function key(name, count, k) {
  const line = document.createElement("div"), button = document.createElement("button");
  const mark = document.createElement("canvas"), text = document.createElement("span");
  mark.width = mark.height = 14;
  shape(mark.getContext("2d"), 7, 7, 5, k, DATA.palette[k % DATA.palette.length]);
  text.textContent = `${name} (${count})`;
  button.setAttribute("aria-pressed", "true");
  button.title = "show or hide";
  button.append(mark, text);
  button.onclick = () => {
    hidden.has(k) ? hidden.delete(k) : hidden.add(k);
    button.setAttribute("aria-pressed", String(!hidden.has(k)));
    draw();
  };
  line.append(button);
  return line;
}

// Classes beyond the palette differ in shape: circle, square, triangle.
function shape(pen, x, y, r, k, colour) {
  pen.fillStyle = colour;
  const kind = Math.floor(k / DATA.palette.length) % 3;
  pen.beginPath();
  if (kind === 0) pen.arc(x, y, r, 0, 7);
  else if (kind === 1) pen.rect(x - r, y - r, 2 * r, 2 * r);
  else { pen.moveTo(x, y - 1.2 * r); pen.lineTo(x + 1.1 * r, y + 0.8 * r); pen.lineTo(x - 1.1 * r, y + 0.8 * r); }
  pen.fill();
}

const shown = (i) => {
  const column = columnOf("colour");
  return !(column.classes && hidden.has(column.values[i]));
};

function draw() {
  const { width, height } = size(), ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.clearRect(0, 0, width, height);
  const at = toScreen(), xs = columnOf("x"), ys = columnOf("y"), classes = columnOf("colour").classes;
  const right = width - margin.right, bottom = height - margin.bottom;
  pen.font = "12px system-ui, sans-serif";
  pen.strokeStyle = "#ddd";
  pen.fillStyle = "#444";
  pen.textAlign = "center";
  for (const [v, text] of ticks(view.x0, view.x1, width / 90)) {
    line(pen, at.x(v), margin.top, at.x(v), bottom);
    pen.fillText(text, at.x(v), bottom + 16);
  }
  pen.textAlign = "right";
  for (const [v, text] of ticks(view.y0, view.y1, height / 60)) {
    line(pen, margin.left, at.y(v), right, at.y(v));
    pen.fillText(text, margin.left - 6, at.y(v) + 4);
  }
  pen.textAlign = "center";
  pen.font = "13px system-ui, sans-serif";
  pen.fillText(xs.name, (margin.left + right) / 2, bottom + 36);
  pen.save();
  pen.translate(14, (margin.top + bottom) / 2);
  pen.rotate(-Math.PI / 2);
  pen.fillText(ys.name, 0, 0);
  pen.restore();

  pen.save();
  pen.beginPath();
  pen.rect(margin.left, margin.top, right - margin.left, bottom - margin.top);
  pen.clip();
  const zoom = Math.sqrt(N / Math.max(inView(xs.values, ys.values), 1));
  const r = Math.min(Math.max(130 / Math.sqrt(N), 1.6) * Math.sqrt(zoom), 7);
  pen.globalAlpha = 0.8;
  for (let i = 0; i < N; i++) {
    if (xs.values[i] === null || ys.values[i] === null || !shown(i)) continue;
    const k = classes ? columnOf("colour").values[i] : 0;
    shape(pen, at.x(xs.values[i]), at.y(ys.values[i]), r, k ?? 0, colours[i]);
  }
  pen.globalAlpha = 1;
  const marked = pinned >= 0 ? pinned : hovered;
  if (marked >= 0) {
    pen.strokeStyle = "#000";
    pen.lineWidth = 2;
    pen.beginPath();
    pen.arc(at.x(xs.values[marked]), at.y(ys.values[marked]), r + 4, 0, 7);
    pen.stroke();
  }
  pen.restore();
}

function inView(xs, ys) {
  let n = 0;
  for (let i = 0; i < N; i++) if (xs[i] >= view.x0 && xs[i] <= view.x1 && ys[i] >= view.y0 && ys[i] <= view.y1) n++;
  return n;
}

function line(pen, x0, y0, x1, y1) {
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}

const short = (v) => (v === null ? "–" : Number.isInteger(v) ? String(v) : String(Number(v.toPrecision(4))));

function nearest(px, py) {
  const at = toScreen(), xs = columnOf("x").values, ys = columnOf("y").values;
  let best = 14 * 14, found = -1;
  for (let i = 0; i < N; i++) {
    if (xs[i] === null || ys[i] === null || !shown(i)) continue;
    const d = (at.x(xs[i]) - px) ** 2 + (at.y(ys[i]) - py) ** 2;
    if (d < best) { best = d; found = i; }
  }
  return found;
}

function tell(i) {
  const pen = patch.getContext("2d"), body = byId("told").tBodies[0], s = DATA.sprite;
  body.replaceChildren();
  pen.clearRect(0, 0, patch.width, patch.height);
  if (i < 0) return;
  if (s) {
    const scale = Math.min(patch.width / s.width, patch.height / s.height);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(sprite, (i % s.across) * s.width, Math.floor(i / s.across) * s.height, s.width, s.height,
      (patch.width - scale * s.width) / 2, (patch.height - scale * s.height) / 2, scale * s.width, scale * s.height);
  }
  for (const column of DATA.columns) {
    const row = body.insertRow(), value = column.values[i];
    row.insertCell().textContent = column.name;
    row.insertCell().textContent = column.classes ? (value === null ? "–" : column.classes[value]) : short(value);
  }
}

let drag = null;
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  drag = { x: event.offsetX, y: event.offsetY, view: { ...view }, moved: false };
});
canvas.addEventListener("pointermove", (event) => {
  if (drag) {
    const { width, height } = size();
    const dx = ((event.offsetX - drag.x) / (width - margin.left - margin.right)) * (view.x1 - view.x0);
    const dy = ((event.offsetY - drag.y) / (height - margin.top - margin.bottom)) * (view.y1 - view.y0);
    if (Math.hypot(event.offsetX - drag.x, event.offsetY - drag.y) > 4) drag.moved = true;
    if (drag.moved) {
      view = { x0: drag.view.x0 - dx, x1: drag.view.x1 - dx, y0: drag.view.y0 + dy, y1: drag.view.y1 + dy };
      draw();
    }
    return;
  }
  const now = nearest(event.offsetX, event.offsetY);
  if (now !== hovered) {
    hovered = now;
    if (pinned < 0) tell(hovered);
    draw();
  }
});
canvas.addEventListener("pointerup", (event) => {
  if (drag && !drag.moved) { // a click holds the patch, another lets it go
    const at = nearest(event.offsetX, event.offsetY);
    pinned = at === pinned ? -1 : at;
    tell(pinned >= 0 ? pinned : hovered);
    draw();
  }
  drag = null;
});
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const at = toScreen(), f = 1.0015 ** event.deltaY;
  const cx = at.vx(event.offsetX), cy = at.vy(event.offsetY);
  view = {
    x0: cx + (view.x0 - cx) * f, x1: cx + (view.x1 - cx) * f,
    y0: cy + (view.y0 - cy) * f, y1: cy + (view.y1 - cy) * f,
  };
  draw();
}, { passive: false });
canvas.addEventListener("dblclick", home);

fill("x", DATA.x, true);
fill("y", DATA.y, true);
fill("colour", DATA.colour, false);
byId("x").onchange = byId("y").onchange = home;
byId("colour").onchange = () => { recolour(); draw(); };
byId("home").onclick = home;
window.addEventListener("resize", draw);
recolour();
home();
if (DATA.sprite) {
  sprite.onload = () => { document.body.dataset.ready = "true"; if (pinned >= 0 || hovered >= 0) tell(Math.max(pinned, hovered)); };
  sprite.src = DATA.sprite.source;
} else document.body.dataset.ready = "true";
