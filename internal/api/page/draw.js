// Drawing: elements are described by h and brought into the document by patch, which changes only what differs, so that
// focus, selection and scrolling survive an update. Text becomes text nodes and nothing else: there is no way from
// a string to markup here, and the page's policy forbids one.

const SVG = 'http://www.w3.org/2000/svg';
const svgTags = new Set(['svg', 'path', 'rect', 'line', 'circle']);

// h describes an element. Children are strings, numbers, descriptions, lists of them, or nothing.
export function h(tag, props, ...children) {
  const { key, ...rest } = props ?? {};
  return { tag, key, props: rest, children: described(children) };
}

function described(children) {
  const list = [];
  for (const c of children.flat(Infinity)) {
    if (c === null || c === undefined || c === false || c === '') continue;
    list.push(typeof c === 'object' ? c : { tag: '#', text: String(c) });
  }
  return list;
}

const drawn = new WeakMap(); // node → its description

function create(v) {
  if (v.tag === '#') return document.createTextNode(v.text);
  return svgTags.has(v.tag) ? document.createElementNS(SVG, v.tag) : document.createElement(v.tag);
}

function update(node, v) {
  const before = drawn.get(node);
  drawn.set(node, v);
  if (v.tag === '#') {
    if (node.data !== v.text) node.data = v.text;
    return;
  }
  const old = before?.props ?? {};
  for (const name of Object.keys(old)) if (!(name in v.props)) set(node, name, null, old[name]);
  for (const [name, value] of Object.entries(v.props)) if (value !== old[name]) set(node, name, value, old[name]);
  sync(node, v.children);
}

function set(node, name, value, old) {
  if (name.startsWith('on')) {
    node[name] = value;
  } else if (name === 'style') {
    for (const k of Object.keys(old ?? {})) if (!(k in (value ?? {}))) node.style.removeProperty(k);
    for (const [k, s] of Object.entries(value ?? {})) node.style.setProperty(k, s);
  } else if (value === null || value === undefined || value === false) {
    node.removeAttribute(name);
  } else {
    node.setAttribute(name, value === true ? '' : value);
  }
}

function sync(parent, list) {
  const wanted = new Set(list.map((v) => v.key).filter((k) => k !== undefined));
  const known = new Map();
  for (const n of [...parent.childNodes]) {
    const key = drawn.get(n)?.key;
    if (key === undefined) continue;
    if (wanted.has(key) && !known.has(key)) known.set(key, n);
    else n.remove();
  }
  let at = parent.firstChild;
  for (const v of list) {
    let n = null;
    if (v.key !== undefined) {
      n = known.get(v.key);
      known.delete(v.key);
      if (n && drawn.get(n).tag !== v.tag) n = null;
    } else if (at && drawn.get(at)?.tag === v.tag && drawn.get(at).key === undefined) {
      n = at;
    }
    if (!n) {
      n = create(v);
      parent.insertBefore(n, at);
    } else if (n === at) {
      at = at.nextSibling;
    } else {
      parent.insertBefore(n, at);
    }
    update(n, v);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

// patch makes the children of an element those that are described.
export function patch(parent, ...children) {
  const focus = document.activeElement;
  sync(parent, described(children));
  // A row that changed its place has lost the focus.
  if (focus && focus !== document.activeElement && focus.isConnected) focus.focus({ preventScroll: true });
}

// Numbers and times, as people read them.

const grouped = new Intl.NumberFormat('en-US', { maximumFractionDigits: 0 });
const space = '\u202f';

export const num = (n) => grouped.format(n ?? 0);

export const rate = (n) => (n > 0 && n < 0.05 ? '<0.1' : n < 9.95 ? n.toFixed(1).replace(/^0\.0$/, '0') : num(n));

// pct is a share. Only all is 100 %, and only nothing is 0 %.
export function pct(part, whole) {
  if (!whole) return '–';
  const p = (100 * part) / whole;
  if (part === 0 || part === whole) return p.toFixed(0) + space + '%';
  if (p < 0.1) return '<0.1' + space + '%';
  if (p < 10 || p > 99) return Math.min(p, 99.9).toFixed(1) + space + '%';
  return p.toFixed(0) + space + '%';
}

export function dur(seconds) {
  if (seconds === undefined || seconds === null) return '–';
  const [n, unit] = seconds < 0.0009995 ? [seconds * 1e6, 'µs'] : seconds < 0.9995 ? [seconds * 1e3, 'ms'] : [seconds, 's'];
  if (unit === 's' && n >= 120) return n >= 5400 ? (n / 3600).toFixed(1) + space + 'h' : Math.round(n / 60) + space + 'min';
  return (n < 9.95 && unit !== 'µs' ? n.toFixed(1).replace(/\.0$/, '') : n.toFixed(0)) + space + unit;
}

const clockFormat = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit' });
const dayFormat = new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'short' });

// clock is a time of the day, with the day unless that is today.
export function clock(text) {
  const t = new Date(text);
  const day = t.toDateString() === new Date().toDateString() ? '' : dayFormat.format(t) + ' ';
  return day + clockFormat.format(t);
}

// time shows a time of the day and tells the whole of it.
export const time = (text) => (text && !text.startsWith('0001') ? h('time', { datetime: text, title: text }, clock(text)) : '–');

// spark draws a history of points [milliseconds, value or null for a gap] over the span from..to. It is for the eye only: the number
// stands beside it.
export function spark(points, from, to, { max, bars, kind = '', wide = 120, high = 30 } = {}) {
  const top = max ?? Math.max(...points.map((p) => p[1] ?? 0), 1e-9);
  const x = (t) => ((t - from) / Math.max(to - from, 1)) * wide;
  const y = (v) => high - 2 - (Math.min(v, top) / top) * (high - 5);
  const at = (n) => n.toFixed(1);
  const shapes = [h('line', { class: 'base', x1: 0, x2: wide, y1: high - 1.5, y2: high - 1.5 })];
  let run = [];
  const flush = () => {
    if (run.length > 0 && !bars) {
      if (run.length === 1) run.push([run[0][0] + 1, run[0][1]]);
      const line = run.map((p, i) => (i ? 'L' : 'M') + at(p[0]) + ' ' + at(p[1])).join('');
      shapes.push(h('path', { class: 'area', d: `${line}L${at(run.at(-1)[0])} ${high - 1}L${at(run[0][0])} ${high - 1}Z` }));
      shapes.push(h('path', { class: 'line', d: line }));
    }
    run = [];
  };
  let d = '';
  for (const [t, v] of points) {
    if (t < from) continue;
    if (v === null) flush();
    else if (!bars) run.push([x(t), y(v)]);
    else if (v > 0) d += `M${at(x(t))} ${high - 1}V${at(Math.min(y(v), high - 4))}`;
  }
  flush();
  if (d) shapes.push(h('path', { class: 'bars', d }));
  return h('svg', { class: 'spark ' + kind, viewBox: `0 0 ${wide} ${high}`, preserveAspectRatio: 'none', 'aria-hidden': 'true', focusable: 'false' }, shapes);
}
