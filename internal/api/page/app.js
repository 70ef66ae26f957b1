// The page: where we are (the address), what is known (the stream of events), and drawing it.

import { h, patch, clock } from './draw.js';
import * as views from './views.js';
import { state, keep } from './views.js';

const $ = (id) => document.getElementById(id);
const tokenKey = 'localcache-token'; // in sessionStorage: it goes with the tab
const busyEvery = 10_000; // between questions where there is no stream
const silent = 10_000; // without an event, from which on the connection is not believed in
const reloadAfter = 4000; // least time between two questions of a view

// ---- Asking

class Refused extends Error {
  constructor(code, e) {
    super(e?.message ?? `the server answers with status ${code}`);
    this.code = code;
    this.hint = e?.hint ?? '';
  }
}

async function ask(path, params, more) {
  const url = new URL('api/v1/' + path, document.baseURI);
  url.hash = '';
  for (const [k, v] of Object.entries(params ?? {})) url.searchParams.set(k, v);
  const headers = {};
  const token = sessionStorage.getItem(tokenKey);
  if (token) headers.Authorization = 'Bearer ' + token;
  const answer = await fetch(url, { headers, cache: 'no-store', credentials: 'same-origin', ...more });
  if (answer.ok) return answer;
  let e = null;
  try {
    e = (await answer.json()).error;
  } catch { /* something before the server answered: the status has to do */ }
  throw new Refused(answer.status, e);
}

const get = async (path, params) => (await ask([path].flat().map(encodeURIComponent).join('/'), params)).json();

// ---- The stream, or asking now and then where there are too many

let current = null; // the AbortController of what is under way
let failed = 0; // attempts in a row

function connect() {
  current?.abort();
  current = null;
  if (document.hidden || state.paused || state.wantsToken) return;
  const mine = (current = new AbortController());
  follow(mine.signal).then(() => 'ended', (e) => e).then((e) => {
    if (current !== mine) return; // another one has taken over
    current = null;
    if (e instanceof Refused && e.code === 401) return wantToken();
    let wait = Math.min(15_000, 500 * 2 ** failed++);
    if (e === 'ended' || e === 'polled') {
      failed = 0;
      wait = e === 'polled' ? busyEvery : 500;
    } else if (e instanceof Refused) {
      state.error = e;
      wait = 15_000;
    }
    if (e !== 'polled') state.contact = 'lost';
    draw();
    timer = setTimeout(connect, wait * (0.8 + 0.4 * Math.random()));
  });
}
let timer = 0;

async function follow(signal) {
  clearTimeout(timer);
  let answer;
  try {
    answer = await ask('stream', { window: state.window }, { signal });
  } catch (e) {
    if (!(e instanceof Refused) || e.code !== 503) throw e;
    const list = await get('overview', { window: state.window });
    if (signal.aborted) return;
    state.contact = 'polling';
    take(list);
    throw 'polled';
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  // A connection that the network has lost without a word brings nothing more.
  let watch = 0;
  const alive = () => {
    clearTimeout(watch);
    watch = setTimeout(() => reader.cancel(), silent);
  };
  signal.addEventListener('abort', () => clearTimeout(watch));
  for (alive(); ; alive()) {
    const { value, done } = await reader.read();
    if (done || signal.aborted) break;
    text += value;
    const blocks = text.split('\n\n');
    text = blocks.pop();
    for (const block of blocks) {
      const lines = block.split('\n');
      if (!lines.includes('event: overview')) continue;
      failed = 0;
      state.contact = 'live';
      take(JSON.parse(lines.filter((l) => l.startsWith('data:')).map((l) => l.slice(5)).join('\n')));
    }
  }
  clearTimeout(watch);
}

// take notes what an event says.
function take(list) {
  const o = list.items[0];
  const t = Date.parse(list.metadata.generatedAt);
  const before = state.overview;
  const seconds = (t - (state.meta ? Date.parse(state.meta.generatedAt) : 0)) / 1000;
  if (before && before.startedAt !== o.startedAt) state.history = []; // another process, whose counters begin at 0
  if (before && before.startedAt === o.startedAt && seconds > 0) {
    if (seconds > 2 * busyEvery / 1000) state.history.push({ t: t - 1, queries: null, hits: null, failed: null, upstreams: new Map() });
    const by = (k) => Math.max(0, o.total[k] - before.total[k]);
    const old = new Map(before.upstreams.map((u) => [u.upstream + ' ' + u.proto, u]));
    const upstreams = new Map();
    for (const u of o.upstreams) {
      const was = old.get(u.upstream + ' ' + u.proto);
      const asked = u.totalExchanges - (was?.totalExchanges ?? 0);
      if (asked > 0) upstreams.set(u.upstream + ' ' + u.proto, (u.totalFailures - (was?.totalFailures ?? 0)) / asked);
    }
    state.history.push({
      t, queries: by('queries') / seconds, hits: by('queries') ? by('hits') / by('queries') : null,
      failed: by('upstreamExchanges') ? by('upstreamFailures') / by('upstreamExchanges') : 0, upstreams,
    });
    while (state.history.length > 400 || state.history[0].t < t - keep) state.history.shift();
  }
  remember(o.findings);
  state.overview = o;
  state.meta = list.metadata;
  state.lastEvent = Date.now();
  state.error = state.error?.ofView ? state.error : null;
  announce(o.findings[0]);
  if (Date.now() - state.loadedAt > reloadAfter) load();
  draw();
}

// remember puts back since when a finding holds: the server forgets failures, the page does not.
let began = new Map();
function remember(findings) {
  const now = new Map();
  for (const f of findings.filter((f) => f.since)) {
    const key = [f.code, f.upstream, f.proto].join(' ');
    const was = began.get(key);
    if (was && Date.parse(was.since) < Date.parse(f.since) && f.sinceAtLeast) Object.assign(f, was);
    now.set(key, { since: f.since, sinceAtLeast: f.sinceAtLeast });
  }
  began = now;
}

// announce tells those who listen that the verdict is another one.
let announced = '';
function announce(f) {
  const about = [f.code, f.severity, f.upstream, f.proto, f.client && views.clientName(f.client)].join(' ');
  if (about === announced) return;
  announced = about;
  $('live').textContent = f.text + views.since(f);
}

// ---- What the view asks for

async function load(again) {
  const { view, path } = state;
  if (!view.load || state.wantsToken) return;
  if (again) state.data = null;
  state.loadedAt = Date.now();
  const question = path + ' ' + state.window;
  try {
    const data = await view.load(get, state.dataFor === question ? state.data : null);
    if (question !== state.path + ' ' + state.window) return; // we are elsewhere by now
    state.data = data;
    state.dataFor = question;
    if (state.error?.ofView) state.error = null;
  } catch (e) {
    if (question !== state.path + ' ' + state.window) return;
    if (e instanceof Refused && e.code === 401) return wantToken();
    state.error = Object.assign(e, { ofView: true });
  }
  draw();
}

// ---- The token

function wantToken() {
  current?.abort();
  current = null;
  state.badToken = sessionStorage.getItem(tokenKey) !== null;
  sessionStorage.removeItem(tokenKey);
  state.wantsToken = true;
  Object.assign(state, { overview: null, meta: null, history: [], data: null });
  draw();
  $('token')?.focus();
}

function tokenForm() {
  const submit = (e) => {
    e.preventDefault();
    const token = $('token').value.trim();
    if (!token) return;
    sessionStorage.setItem(tokenKey, token);
    Object.assign(state, { wantsToken: false, badToken: false, error: null, contact: 'connecting' });
    failed = 0;
    connect();
    load(true);
    draw();
  };
  return h('form', { class: 'token', key: 'token', onsubmit: submit },
    h('h1', {}, 'A token is needed'),
    h('p', { id: 'token-note' }, 'The text of the file that ', h('code', {}, 'access token'), ' names in the Corefile; with ', h('code', {}, 'access kubernetes'), ' what ', h('code', {}, 'kubectl create token'), ' prints. It is kept until this tab is closed.'),
    h('label', { for: 'token' }, 'Token'),
    h('div', { class: 'row' }, h('input', { id: 'token', type: 'password', autocomplete: 'off', spellcheck: 'false', required: true, 'aria-describedby': 'token-note token-error', 'aria-invalid': state.badToken ? 'true' : null }), h('button', { type: 'submit' }, 'Show')),
    h('p', { id: 'token-error', class: 'bad', role: 'alert' }, state.badToken ? 'This token is wrong, or was taken back.' : ''));
}

// ---- Where we are

const routes = {
  '': [views.overview], upstreams: [views.upstreamList, null, views.upstreamDetail], pods: [views.podList, views.podDetail, views.podDetail],
  names: [views.nameList, views.nameDetail], queries: [views.queryList, views.queryDetail],
};

const places = new Map(); // address → how far it was scrolled

function read() {
  const [path, query] = location.hash.replace(/^#\/?/, '').split('?');
  let parts;
  try {
    parts = path.split('/').filter((p) => p !== '').map(decodeURIComponent);
  } catch {
    parts = []; // cut within a character
  }
  if (parts.some((p) => /^\.\.?$/.test(p))) parts = []; // another path
  const view = routes[parts[0] ?? '']?.[Math.max(0, parts.length - 1)] ?? views.overview;
  state.args = view === views.overview ? [] : parts.slice(1);
  state.section = view === views.overview ? '' : parts[0];
  state.query = new URLSearchParams(query ?? '');
  const w = state.query.get('window');
  const chosen = views.windows.some(([v]) => v === w) ? w : '5m';
  const other = chosen !== state.window;
  state.window = chosen;
  state.view = view;
  state.path = path + ' ' + (state.query.get('by') ?? '');
  return other;
}

let at = location.hash;
function moved() {
  places.set(at, scrollY);
  const before = state.view, beforePath = state.path;
  at = location.hash;
  const otherWindow = read();
  const elsewhere = before !== state.view || beforePath.split(' ')[0] !== state.path.split(' ')[0];
  if (elsewhere || beforePath !== state.path || otherWindow) load(elsewhere);
  if (elsewhere && state.error?.ofView) state.error = null;
  if (otherWindow) connect();
  draw();
  if (elsewhere) {
    scrollTo(0, places.get(at) ?? 0);
    document.querySelector('main h1')?.focus({ preventScroll: true });
  }
}

// ---- Drawing

const contacts = { live: 'Live', polling: 'Every 10 s', connecting: 'Connecting', lost: 'No contact', paused: 'Paused' };

function header() {
  const nav = [['', 'Overview'], ['upstreams', 'Upstreams'], ['pods', 'Clients'], ['names', 'Names'], ['queries', 'Queries']];
  const contact = state.paused ? 'paused' : state.contact;
  const node = state.meta?.node;
  return [
    h('div', { class: 'bar' },
      h('p', { class: 'brand' }, h('a', { href: views.href([]) }, 'localcache'), node && h('span', { class: 'node' }, node)),
      h('p', { class: 'contact ' + contact }, h('span', { class: 'dot', 'aria-hidden': 'true' }), contacts[contact], contact === 'lost' && state.lastEvent ? ' since ' + clock(state.lastEvent) : ''),
      !state.wantsToken && h('button', { type: 'button', class: 'quiet', 'aria-pressed': String(state.paused), onclick: pause }, state.paused ? 'Go on' : 'Pause')),
    !state.wantsToken && h('div', { class: 'bar' },
      h('nav', { class: 'views', 'aria-label': 'Views' }, nav.map(([path, text]) => h('a', { href: views.href(path ? [path] : []), 'aria-current': state.section === path ? (state.args.length ? 'true' : 'page') : null }, text))),
      state.view.windows && views.choices('Window of time', views.windows, state.window, (w) => views.href(state.section ? [state.section, ...state.args] : [], { ...Object.fromEntries(state.query), window: w }))),
  ];
}

function pause() {
  state.paused = !state.paused;
  connect();
  draw();
}

function trouble() {
  const e = state.error;
  if (!e) return null;
  return h('div', { class: 'trouble', role: 'alert', key: 'trouble' }, h('p', {}, h('strong', {}, e instanceof Refused ? sentence(e.message) : 'localcache cannot be reached'), '.'), e.hint && h('p', {}, sentence(e.hint) + '.'));
}
const sentence = (s) => s.charAt(0).toUpperCase() + s.slice(1);

function draw() {
  const { view } = state;
  const title = typeof view.title === 'function' ? view.title() : view.title;
  document.title = (view === views.overview && state.overview ? state.overview.findings[0].text : title) + ' – localcache' + (state.meta?.node ? ' on ' + state.meta.node : '');
  patch($('head'), header());
  if (state.wantsToken) {
    patch($('main'), tokenForm());
    patch($('foot'));
    return;
  }
  const stale = state.contact === 'lost' && state.overview && Date.now() - state.lastEvent > silent;
  patch($('main'),
    trouble(),
    stale && h('p', { class: 'trouble', key: 'stale', role: 'alert' }, `No contact with localcache since ${clock(state.lastEvent)}: what follows is from then.`),
    h('div', { class: 'view' + (stale ? ' stale' : ''), key: 'view ' + state.path.split(' ')[0] }, view.draw(state.data)));
  $('main').removeAttribute('aria-busy');
  patch($('foot'),
    state.meta?.notes?.map((n) => h('p', {}, sentence(n) + '.')),
    state.overview && h('p', {}, 'localcache ', h('span', { class: 'mono' }, state.overview.version), ' · counting since ', clock(state.overview.startedAt), state.meta.windowSeconds ? ` · the window covers ${Math.round(state.meta.windowSeconds)} s now` : ''),
    h('p', {}, h('a', { href: 'openapi.json' }, 'HTTP API'), sessionStorage.getItem(tokenKey) && [' · ', h('button', { type: 'button', class: 'quiet', onclick: () => { sessionStorage.removeItem(tokenKey); wantToken(); } }, 'Forget the token')]));
}

addEventListener('hashchange', moved);
document.addEventListener('visibilitychange', connect);
addEventListener('pagehide', () => current?.abort());
// The time since the last event grows without an event.
setInterval(() => {
  if (state.contact === 'lost') draw();
}, 5000);

history.scrollRestoration = 'manual';
read();
connect();
load();
draw();
