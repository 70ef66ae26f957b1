// What is shown: each view says what it asks the server for, and what it draws of the answer.

import { h, num, rate, pct, dur, time, clock, spark } from './draw.js';

// state is what is known: where we are, what the server told, and what the view asked for.
export const state = {
  args: [], query: new URLSearchParams(), window: '5m', view: null, path: '', section: '',
  overview: null, meta: null, history: [], paused: false,
  contact: 'connecting', lastEvent: 0,
  data: null, dataFor: '', loadedAt: 0, error: null, wantsToken: false, badToken: false,
  span() {
    const to = this.history.at(-1)?.t ?? Date.now();
    return [Math.max(to - keep, Math.min(this.history[0]?.t ?? to, to - 60_000)), to];
  },
};
export const keep = 5 * 60_000; // of history, in milliseconds

export const windows = [['10s', '10 s'], ['1m', '1 min'], ['5m', '5 min'], ['1h', '1 h'], ['start', 'all']];
const windowText = { '10s': 'the last 10 seconds', '1m': 'the last minute', '5m': 'the last 5 minutes', '1h': 'the last hour', start: 'all the time since the start' };

// href is the address of a view. The window goes along.
export function href(path, query = {}) {
  const q = new URLSearchParams(query);
  if (state.window !== '5m' && !q.has('window')) q.set('window', state.window);
  if (q.get('window') === '5m') q.delete('window');
  const text = q.toString();
  return '#/' + path.map(encodeURIComponent).join('/') + (text && '?' + text);
}

export function clientName(c) {
  if (c.overflow) return '~other';
  if (c.host) return 'host';
  if (c.pod) return c.namespace ? c.namespace + '/' + c.pod : c.pod;
  return c.addresses[0] ?? '–';
}
const clientPath = (c) => (c.namespace && c.pod ? ['pods', c.namespace, c.pod] : ['pods', clientName(c)]);
const queryID = (q) => [q.receivedAt, clientName(q.client), q.port, q.id, q.type].join(' ');
const words = (s) => s.replaceAll('_', ' ');
const failures = new Set(['timeout', 'conn_refused', 'unreachable', 'reset', 'bad_reply']);
const grade = (outcome) => (failures.has(outcome) ? 'bad' : outcome === 'servfail' || outcome === 'refused' || outcome === 'other_rcode' ? 'poor' : 'fine');
// ended is how an exchange went, in words, and how well: one that was overtaken has not failed.
const ended = (q, e) => (e.overtaken ? ['overtaken', 'none'] : [words(e.outcome), grade(e.outcome)]);
const step = ([text, kind], title) => h('span', { class: 'step ' + kind, title }, text);
const rcodeGrade = (rcode) => (rcode === 'NOERROR' || rcode === 'NXDOMAIN' ? '' : rcode === 'NOREPLY' ? 'poor' : 'bad');

const span = (cls, ...text) => h('span', { class: cls }, text);
const note = (...text) => h('p', { class: 'note' }, text);
const heading = (...text) => h('h1', { tabindex: '-1' }, text);
const link = (path, text, cls) => h('a', { href: href(path), class: cls }, text);
const clientLink = (c) => link(clientPath(c), clientName(c), 'mono');
const nameLink = (name) => link(['names', name], name, 'mono name');
const upstreamLink = (u) => [link(['upstreams', u.upstream, u.proto], u.upstream, 'mono'), ' ', span('tag', u.proto)];

const inWindow = () => windowText[state.window];

function section(title, remark, ...children) {
  const id = 's-' + title.toLowerCase().replace(/[^a-z]+/g, '-');
  return h('section', { key: id, 'aria-labelledby': id }, h('div', { class: 'title' }, h('h2', { id }, title), remark && note(remark)), children);
}
const empty = (text) => h('p', { class: 'empty' }, text);

// table draws rows of {key, cells, path}. Columns are [title, class]; the first cell has the row's link.
function table(caption, columns, rows) {
  const head = columns.map(([title, cls]) => h('th', { scope: 'col', class: cls }, title));
  return h('div', { class: 'scroll', role: 'group', tabindex: rows.some((r) => r.path) ? null : '0', 'aria-label': caption },
    h('table', {}, h('caption', { class: 'unseen' }, caption), h('thead', {}, h('tr', {}, head)),
      h('tbody', {}, rows.map((r) => h('tr', { key: r.key, class: r.path ? 'to' : null, onclick: r.path ? follow(href(r.path)) : null },
        r.cells.map((c, i) => h(i ? 'td' : 'th', { class: columns[i][1], scope: i ? null : 'row' }, c)))))));
}

// follow goes where a row leads, unless its text is being selected or a link was meant.
const follow = (to) => (e) => {
  if (!e.target.closest('a') && e.button === 0 && String(getSelection()) === '') location.hash = to;
};

const meter = (part, whole, kind = '') => h('span', { class: 'meter ' + kind, 'aria-hidden': 'true' }, h('span', { style: { width: Math.min(100, (100 * part) / Math.max(whole, 1)).toFixed(1) + '%' } }));

function facts(list) {
  return h('dl', { class: 'facts' }, list.filter(([, v]) => v).map(([k, v]) => h('div', {}, h('dt', {}, k), h('dd', {}, v))));
}

// choices are links of which one is where we are.
export function choices(label, list, current, to) {
  return h('nav', { class: 'choices', 'aria-label': label }, list.map(([value, text]) => h('a', { href: to(value), 'aria-current': value === current ? 'true' : null }, text)));
}

const signs = {
  ok: 'M4 10.5l4 4 8-9', info: 'M10 9v6M10 5.2v.2', warning: 'M10 5v6M10 14.8v.2', error: 'M5.5 5.5l9 9M14.5 5.5l-9 9',
};
const meaning = { ok: 'Well', info: 'Note', warning: 'Warning', error: 'Problem' };
export const sign = (severity) => h('svg', { class: 'sign ' + severity, viewBox: '0 0 20 20', role: 'img', 'aria-label': meaning[severity] }, h('path', { d: signs[severity] }));

const findingPath = (f) => (f.client ? clientPath(f.client) : f.upstream ? ['upstreams', f.upstream, f.proto] : f.code === 'servfail' ? ['queries'] : f.code === 'no_upstream' ? ['upstreams'] : null);
export const since = (f) => (f.since ? `, since ${clock(f.since)}${f.sinceAtLeast ? ' or earlier' : ''}` : '');
const findingText = (f) => {
  const path = findingPath(f);
  const text = f.text + since(f);
  return path ? link(path, text) : text;
};

export function verdict() {
  const all = state.overview.findings;
  return h('section', { class: 'verdict ' + all[0].severity, key: 'verdict', 'aria-label': 'Verdict' },
    sign(all[0].severity),
    h('div', {},
      heading(findingText(all[0])),
      all[0].hint && h('p', { class: 'hint' }, all[0].hint),
      all.length > 1 && h('ul', { class: 'more' }, all.slice(1).map((f, i) => h('li', { key: f.code + (f.upstream ?? '') + (f.client ? clientName(f.client) : '') + (f.proto ?? '') }, sign(f.severity), h('span', {}, findingText(f), all[i].code !== f.code && f.hint && span('hint', f.hint)))))));
}

function tile(title, value, unit, remark, picture, kind = '') {
  return h('div', { class: 'tile ' + kind, key: title }, h('h2', {}, title), h('p', { class: 'value' }, value, unit && span('unit', unit)), picture, note(remark));
}

function tiles() {
  const s = state.overview.summary;
  const [from, to] = state.span();
  const line = (k, o) => spark(state.history.map((p) => [p.t, p[k]]), from, to, o);
  const missing = s.rcodes.nxdomain;
  const wrong = s.rcodes.servfail + s.rcodes.refused + s.rcodes.other_rcode;
  return h('section', { class: 'tiles', 'aria-label': 'Numbers of ' + inWindow() },
    tile('Queries', rate(s.queriesPerSecond), '/s', `${num(s.queries)} of ${num(s.clients)} client${s.clients === 1 ? '' : 's'}`, line('queries')),
    tile('From memory', pct(s.hits, s.queries), '', s.sources.stale ? `${num(s.sources.stale)} of them past the TTL` : `${num(s.queries - s.hits)} had to wait for an upstream`, line('hits', { max: 1, kind: 'good' })),
    tile('Failed exchanges', pct(s.upstreamFailures, s.upstreamExchanges), '', `${num(s.upstreamFailures)} of ${num(s.upstreamExchanges)} with upstreams`, line('failed', { max: 1, bars: true, kind: 'bad' }), s.upstreamFailures ? 'bad' : ''),
    tile('Miss, median', s.miss.count ? dur(s.miss.p50Seconds) : '–', '', s.miss.count ? `99 in 100 within ${dur(s.miss.p99Seconds)}` : 'no miss', null),
    tile('Errors', pct(wrong, s.queries), '', `${num(s.rcodes.servfail)} SERVFAIL, ${pct(missing, s.queries)} NXDOMAIN`, null, wrong ? 'bad' : ''),
    tile('Asked again', num(s.retransmitTotal), '', s.retransmitTotal ? 'repeated by clients' : 'none repeated', null, s.retransmitTotal ? 'poor' : ''));
}

const failureSpark = (u, kind, wide, high) => spark(state.history.map((p) => [p.t, p.upstreams.get(u.upstream + ' ' + u.proto) ?? null]), ...state.span(), { max: 1, bars: true, kind, wide, high });

function upstreamsSection(title) {
  const list = state.overview.upstreams;
  if (list.length === 0) return section(title, null, empty('No upstream was asked yet: all answers came from this node.'));
  const columns = [['Upstream'], ['Exchanges/s', 'n'], ['Failed', 'n'], ['Failures, as seen here', 'pic opt'], ['Median', 'n opt'], ['1 in 100 over', 'n'], ['In flight', 'n opt'], ['Last failure', 'opt']];
  return section(title, 'Failures: timeouts and errors of the network, not NXDOMAIN', table('Upstreams', columns, list.map((u) => ({
    key: u.upstream + ' ' + u.proto, path: ['upstreams', u.upstream, u.proto],
    cells: [
      upstreamLink(u), rate(u.exchangesPerSecond), span(u.failures ? 'bad' : 'calm', pct(u.failures, u.exchanges)),
      failureSpark(u, 'bad', 160, 22),
      u.latency.count ? dur(u.latency.p50Seconds) : '–', u.latency.count ? dur(u.latency.p99Seconds) : '–', num(u.inFlight),
      u.lastFailure ? h('span', { title: u.lastFailure.message }, words(u.lastFailure.outcome), ' at ', time(u.lastFailure.at)) : 'none',
    ],
  }))));
}

function podRows(list) {
  return list.map((p) => ({
    key: clientName(p) + (p.uid ?? ''), path: clientPath(p),
    cells: [
      clientLink(p), num(p.queries), pct(p.hits, p.queries), p.miss.count ? dur(p.miss.p99Seconds) : '–', dur(p.upstreamWaitSeconds),
      span(p.rcodes.nxdomain > p.rcodes.noerror * 2 ? 'poor' : '', pct(p.rcodes.nxdomain, p.queries)),
      span(p.rcodes.servfail ? 'bad' : 'calm', num(p.rcodes.servfail)), span(p.retransmitTotal ? 'poor' : 'calm', num(p.retransmitTotal)),
    ],
  }));
}
const podColumns = [['Client'], ['Queries', 'n'], ['From memory', 'n opt'], ['Miss, 1 in 100 over', 'n'], ['Waited', 'n'], ['NXDOMAIN', 'n opt'], ['SERVFAIL', 'n opt'], ['Asked again', 'n opt']];

const why = 'How resolvers repeat a question tells why';
const some = (list) => [0, 1, 3, 4].map((i) => list[i]); // of the columns, where there is little room

const all = { limit: 2048 }; // more than there can be

const causes = { slow_upstream: 'no answer in time', reply_lost: 'the reply was lost', query_lost: 'the query was lost' };

function retransmitsSection() {
  const list = state.overview.retransmits;
  if (list.length === 0) return section('Asked again', why, empty(`No client had to ask again in ${inWindow()}.`));
  return section('Asked again', why, table('Clients that asked again', [['Client'], ['Resolver'], ['Because'], ['Times', 'n']], list.map((r) => ({
    key: clientName(r.client) + r.resolver + r.cause, path: clientPath(r.client),
    cells: [clientLink(r.client), r.resolver, causes[r.cause] ?? words(r.cause), num(r.count)],
  }))));
}

const tops = [['queries', 'Most asked'], ['misses', 'Misses'], ['nxdomain', 'NXDOMAIN'], ['servfail', 'SERVFAIL'], ['slowest', 'Slowest']];
const noName = { queries: 'No name was asked for', misses: 'No name had to be asked of an upstream', nxdomain: 'No name was answered NXDOMAIN', servfail: 'No name was answered SERVFAIL', slowest: 'No name was asked for' };
const topBy = () => (tops.some(([by]) => by === state.query.get('by')) ? state.query.get('by') : 'queries');
const topSpan = () => (state.window === 'start' ? 'since the start' : 'in the last hour');

function names(list, by) {
  if (list.length === 0) return empty(`${noName[by]} ${topSpan()}.`);
  const value = (n) => (by === 'slowest' ? (n.seconds ?? 0) : n.count);
  const most = value(list[0]);
  return table('Names', [['Name'], [by === 'slowest' ? 'Longest' : 'Queries', 'n'], ['Share', 'pic opt']], list.map((n) => ({
    key: n.name, path: ['names', n.name],
    cells: [nameLink(n.name), by === 'slowest' ? dur(n.seconds) : (n.error ? '≤ ' : '') + num(n.count), meter(value(n), most)],
  })));
}

const sources = { replay: 'the cache', cache: 'the cache', stale: 'the cache, past its TTL', local: 'this node’s own data' };
const from = (q) => sources[q.source] ?? q.source;

function queries(list, none) {
  if (list.length === 0) return empty(none);
  return table('Slow and failed queries', [['Received'], ['Client', 'opt'], ['Name'], ['Answer'], ['Took', 'n'], ['Exchanges', 'opt']], list.map((q) => ({
    key: queryID(q), path: ['queries', queryID(q)],
    cells: [
      link(['queries', queryID(q)], time(q.receivedAt)), clientLink(q.client), [nameLink(q.name), ' ', span('tag', q.type), span('narrow mono', clientName(q.client))],
      span(rcodeGrade(q.rcode), q.rcode), dur(q.durationSeconds),
      q.exchanges.length === 0 ? span('calm', q.source === 'upstream' ? 'none' : 'from ' + from(q)) : q.exchanges.map((e) => step(ended(q, e), `${e.upstream} ${e.proto}, ${dur(e.durationSeconds)}`)),
    ],
  })));
}

function events(list, none, withUpstream) {
  if (list.length === 0) return empty(none);
  const columns = [['When'], ...(withUpstream ? [['Upstream']] : []), ['Outcome'], ['After', 'n'], ['What happened', 'long']];
  return table('Failed exchanges', columns, list.map((e, i) => ({
    key: `${e.at} ${e.upstream} ${e.proto} ${i}`, path: withUpstream ? ['upstreams', e.upstream, e.proto] : null,
    cells: [withUpstream ? link(['upstreams', e.upstream, e.proto], time(e.at)) : time(e.at), ...(withUpstream ? [[span('mono', e.upstream), ' ', span('tag', e.proto)]] : []), span('step bad', words(e.outcome)), dur(e.durationSeconds),
      [e.message, e.probe ? ' (health check)' : e.attempt > 1 ? ` (attempt ${e.attempt})` : '']],
  })));
}

const more = (path, text, query) => h('p', { class: 'all' }, h('a', { href: href(path, query) }, text));

export const overview = {
  title: 'Overview', windows: true,
  draw() {
    const o = state.overview;
    if (!o) return [h('h1', { class: 'wait', tabindex: '-1' }, 'Asking localcache …')];
    const by = topBy();
    const hidden = o.hidden && section('Clients, names and queries', null, empty(`They are hidden from you: ${o.hidden}.`));
    return [
      verdict(), tiles(), upstreamsSection('Upstreams'),
      o.events.length > 0 && hidden && section('Failed exchanges', null, events(o.events, '', true)),
      hidden || [
        section('Slow and failed queries', `What took ${dur(o.slowSeconds)} or more, failed, or met an upstream that failed`,
          queries(o.queries, `None is remembered: no query took ${dur(o.slowSeconds)} or more, and none failed.`), o.queries.length > 0 && more(['queries'], 'All slow and failed queries')),
        h('div', { class: 'two', key: 'two' },
          section('Slow clients', 'By the slowest hundredth of their queries',
            o.pods.length ? [table('Slow clients', some(podColumns), podRows(o.pods).map((r) => ({ ...r, cells: some(r.cells) }))), more(['pods'], 'All clients')]
              : empty(`No client asked in ${inWindow()}.`)),
          retransmitsSection()),
        section('Names', topSpan() === 'since the start' ? 'Since the start' : 'In the last hour',
          choices('Order of names', tops, by, (v) => href([], v === 'queries' ? {} : { by: v })), names(o.top[by] ?? [], by), more(['names'], 'More names', { by })),
      ],
    ];
  },
};

export const upstreamList = {
  title: 'Upstreams', windows: true,
  load: async (get) => ({ events: (await get('events', { limit: 100 })).items }),
  draw(data) {
    return [heading('Upstreams'), state.overview && upstreamsSection('Whom this node asks'), data && section('Latest failures', null, events(data.events, 'No exchange with an upstream has failed since the start.', true))];
  },
};

const podOrders = [['queries', 'Queries'], ['latency', 'Slowest'], ['wait', 'Waited'], ['retransmits', 'Asked again'], ['nxdomain', 'NXDOMAIN'], ['errors', 'Errors'], ['name', 'Name']];
const podBy = () => (podOrders.some(([v]) => v === state.query.get('by')) ? state.query.get('by') : 'latency');

export const podList = {
  title: 'Clients', windows: true,
  load: async (get) => ({ pods: (await get('pods', { window: state.window, by: podBy(), limit: 2048 })).items }),
  draw(data) {
    return [heading('Clients'), choices('Order of clients', podOrders, podBy(), (by) => href(['pods'], { by })),
      data && (data.pods.length ? table('Clients', podColumns, podRows(data.pods)) : empty(`No client asked in ${inWindow()}.`))];
  },
};

export const nameList = {
  title: 'Names', windows: true,
  load: async (get) => get('top', { window: state.window === 'start' ? 'start' : '1h', by: topBy() }),
  draw(data) {
    const by = topBy();
    return [heading('Names ' + topSpan()), choices('Order of names', tops, by, (v) => href(['names'], { by: v })), data && names(data.items, by),
      data?.metadata.floor > 0 && by !== 'slowest' && note(`A name that is not listed was counted at most ${num(data.metadata.floor)} times.`)];
  },
};

const kinds = [['all', 'All'], ['failed', 'Failed exchanges'], ['servfail', 'SERVFAIL'], ['slow', 'Over 1 s']];

export const queryList = {
  title: 'Queries',
  load: async (get) => get('queries', all),
  draw(data) {
    const kind = kinds.some(([v]) => v === state.query.get('kind')) ? state.query.get('kind') : 'all';
    const fits = { all: () => true, failed: (q) => q.exchanges.some((e) => ended(q, e)[1] === 'bad'), servfail: (q) => q.rcode === 'SERVFAIL', slow: (q) => q.durationSeconds >= 1 }[kind];
    const list = data?.items.filter(fits);
    return [heading('Slow and failed queries'), choices('Which queries', kinds, kind, (v) => href(['queries'], v === 'all' ? {} : { kind: v })),
      list && note(`${num(list.length)} of ${num(data.items.length)} that are remembered; new ones take the place of the oldest.`),
      list && queries(list, kind === 'all' ? 'None is remembered: nothing was slow, and nothing failed.' : 'None that is remembered is of this kind.')];
  },
};

const back = (path, text) => h('p', { class: 'back' }, link(path, '← ' + text));

export const upstreamDetail = {
  title: () => `Upstream ${state.args[0]} ${state.args[1]}`, windows: true,
  async load(get) {
    const is = (u) => u.upstream === state.args[0] && u.proto === state.args[1];
    const upstreams = await get('upstreams', { window: state.window, limit: 2048 });
    const failed = await get('events', all);
    const asked = state.overview?.hidden ? null : await get('queries', all);
    return { upstream: upstreams.items.find(is), events: failed.items.filter(is), queries: asked?.items.filter((q) => q.exchanges.some(is)) };
  },
  draw(data) {
    const head = [back(['upstreams'], 'Upstreams'), heading(span('mono', state.args[0]), ' ', span('tag', state.args[1]))];
    if (!data) return head;
    const u = data.upstream;
    if (!u) return [head, empty('This upstream was not asked since the start, or is forgotten because it is not used any more.')];
    const outcomes = Object.entries(u.outcomes).filter(([, n]) => n > 0);
    return [
      head,
      facts([
        ['Exchanges', `${num(u.exchanges)}, ${rate(u.exchangesPerSecond)} a second`], ['Failed', span(u.failures ? 'bad' : '', `${pct(u.failures, u.exchanges)} (${num(u.failures)})`)],
        ['Median of answers', u.latency.count ? dur(u.latency.p50Seconds) : '–'], ['1 in 100 over', u.latency.count ? dur(u.latency.p99Seconds) : '–'], ['In flight', num(u.inFlight)],
        ['Last answer', u.lastAnswer ? time(u.lastAnswer) : 'never'], ['Hedges', num(u.hedges)], ['Retries', num(u.retries)], ['Reused', pct(u.reused, u.exchanges)],
      ]),
      h('div', { class: 'two', key: 'two' },
        section('Outcomes', `In ${inWindow()}`, outcomes.length ? table('Outcomes', [['Outcome'], ['Exchanges', 'n'], ['Share', 'pic']], outcomes.map(([o, n]) => ({ key: o, cells: [span('step ' + grade(o), words(o)), num(n), meter(n, u.exchanges, grade(o))] }))) : empty(`It was not asked in ${inWindow()}.`)),
        section('Failures, as seen here', 'Share of exchanges, since this page was opened', failureSpark(u, 'bad tall', 480, 80))),
      section('Queries that it was asked for', 'Of the slow and failed ones', data.queries ? queries(data.queries, 'None of those that are remembered.') : empty('Queries are hidden from you.')),
      section('Latest failures', null, events(data.events, 'No exchange with it has failed since the start.')),
      u.connections.length > 0 && section('Connections', `${num(u.openConnections)} open`, table('Connections', [['Our end'], ['Opened', 'opt'], ['In flight', 'n'], ['RTT', 'n'], ['Retransmits', 'n'], ['Silent', 'n']],
        u.connections.map((c) => ({ key: c.local, cells: [span('mono', c.local), time(c.opened), num(c.inFlight), dur(c.rttSeconds), num(c.retransmits), dur(c.silentSeconds)] })))),
    ];
  },
};

export const podDetail = {
  title: () => 'Client ' + state.args.join('/'), windows: true,
  load: async (get) => (await get(['pods', ...state.args], { window: state.window })).items[0],
  draw(p) {
    const head = [back(['pods'], 'Clients'), h('h1', { tabindex: '-1', class: 'mono' }, state.args.join('/'))];
    if (!p) return head;
    const columns = [['Window'], ['Queries', 'n'], ['A second', 'n opt'], ['From memory', 'n'], ['Median miss', 'n opt'], ['1 in 100 over', 'n'], ['Waited', 'n opt'], ['NXDOMAIN', 'n'], ['SERVFAIL', 'n'], ['Asked again', 'n']];
    return [
      head,
      facts([['Addresses', p.addresses.length ? span('mono', p.addresses.join(', ')) : null], ['Workload', p.workload], ['UID', p.uid && span('mono', p.uid)], ['First seen', time(p.firstSeen)], ['Last seen', time(p.lastSeen)],
        ['NXDOMAINs for an answer', p.searchWaste.toFixed(1)]]),
      section('Over time', null, table('Windows', columns, windows.map(([w, text]) => {
        const t = p.windows[w];
        return { key: w, cells: [text, num(t.queries), rate(t.queriesPerSecond), pct(t.hits, t.queries), t.miss.count ? dur(t.miss.p50Seconds) : '–', t.miss.count ? dur(t.miss.p99Seconds) : '–', dur(t.upstreamWaitSeconds), pct(t.rcodes.nxdomain, t.queries),
          span(t.rcodes.servfail ? 'bad' : 'calm', num(t.rcodes.servfail)), span(t.retransmitTotal ? 'poor' : 'calm', num(t.retransmitTotal))] };
      }))),
      h('div', { class: 'two', key: 'two' },
        section('Asked again', `In ${inWindow()}`, p.retransmits.length ? table('Asked again', [['Because'], ['Resolver'], ['Times', 'n']], p.retransmits.map((r) => ({ key: r.cause + r.resolver, cells: [causes[r.cause] ?? words(r.cause), r.resolver, num(r.count)] })))
          : empty('It did not have to ask again.'), p.suspected && note('Perhaps, or it polls: ' + Object.entries(p.suspected).map(([c, n]) => `${causes[c] ?? words(c)}, ${num(n)}`).join('; '))),
        section('Names', 'Since it was first seen', p.names.length ? table('Names of this client', [['Name'], ['Queries', 'n']], p.names.map((n) => ({ key: n.name, path: ['names', n.name], cells: [nameLink(n.name), (n.error ? '≤ ' : '') + num(n.count)] }))) : empty('None.'))),
      section('Slow and failed queries', null, queries(p.recent, 'None is remembered: it had no query that was slow or failed.')),
    ];
  },
};

export const nameDetail = {
  title: () => 'Name ' + state.args[0],
  async load(get) {
    const remembered = await get('queries', all);
    const cut = /(^|[^\\])~$/.test(state.args[0]) ? state.args[0].slice(0, -1) : null; // of a long name, lists have the beginning
    const counts = [];
    for (const [by, text] of tops) {
      const list = await get('top', { by, window: state.window === 'start' ? 'start' : '1h', limit: 2048 });
      counts.push([by, text, list.items.find((n) => n.name === state.args[0]), list.metadata.floor]);
    }
    return { queries: remembered.items.filter((q) => q.name === state.args[0] || (cut && q.name.startsWith(cut))), counts };
  },
  draw(data) {
    const head = [back(['names'], 'Names'), h('h1', { tabindex: '-1', class: 'mono name' }, state.args[0])];
    if (!data) return head;
    const count = ([by, text, n, floor]) => [by === 'queries' ? 'Queries' : text, n ? (by === 'slowest' ? dur(n.seconds) : num(n.count)) : by !== 'slowest' && floor ? `at most ${num(floor)}` : 'none'];
    return [head, note(topSpan() === 'since the start' ? 'Counted since the start' : 'Counted in the last hour'), facts(data.counts.map(count)),
      section('Slow and failed queries of it', null, queries(data.queries, 'None is remembered: whoever asked for it got an answer, and soon.'))];
  },
};

const queryFacts = (q) => facts([
  ['Received', [time(q.receivedAt)]], ['Client', [clientLink(q.client), span('calm', ` port ${q.port}, ID ${q.id}`)]], ['Transport', q.proto], ['Answer', span(rcodeGrade(q.rcode), q.rcode)],
  ['From', from(q)],
  ['Took', dur(q.durationSeconds)], ['Waited for upstreams', dur(q.upstreamSeconds)], ['In the socket’s queue', q.queuedSeconds ? dur(q.queuedSeconds) : 'none, or unknown'],
]);

// laid says when each exchange began; where the server does not tell, after the one before.
function laid(q) {
  let at = q.queuedSeconds;
  return q.exchanges.map((e) => {
    const start = e.startSeconds ?? Math.max(0, Math.min(at, q.durationSeconds - e.durationSeconds));
    at = Math.max(at, start + e.durationSeconds);
    return { ...e, start, known: e.startSeconds !== undefined };
  });
}

function waterfall(q) {
  const steps = laid(q);
  const first = Math.min(0, ...steps.map((e) => e.start));
  const end = Math.max(q.durationSeconds, ...steps.map((e) => e.start + e.durationSeconds)) || 1;
  const at = (s) => (100 * (s - first)) / (end - first);
  const bar = (from, length, kind) => h('span', { class: 'track', 'aria-hidden': 'true' }, h('span', { class: 'length ' + kind, style: { left: at(from).toFixed(2) + '%', width: Math.max(at(from + length) - at(from), 0.4).toFixed(2) + '%' } }));
  const rows = steps.map((e, i) => ({
    key: i, path: ['upstreams', e.upstream, e.proto],
    cells: [
      [upstreamLink(e), e.hedge && h('span', { class: 'tag', title: 'sent while an earlier one was waiting' }, 'hedge'), e.reused && h('span', { class: 'tag', title: 'on a connection that was open' }, 'reused'), e.shared && h('span', { class: 'tag', title: 'made for another client' }, 'shared')],
      step(ended(q, e), e.message), dur(e.durationSeconds), bar(e.start, e.durationSeconds, ended(q, e)[1]),
    ],
  }));
  rows.push({ key: 'whole', cells: ['The client waited', span(rcodeGrade(q.rcode), q.rcode), dur(q.durationSeconds), bar(0, q.durationSeconds, 'whole')] });
  return [
    table('Exchanges', [['Exchange'], ['Outcome'], ['Took', 'n'], [`0 to ${dur(end)}`, 'fall']], rows),
    h('ul', { class: 'messages' }, [...new Set(steps.filter((e) => e.message).map((e) => `${e.upstream} ${e.proto}: ${e.message}`))].map((m) => h('li', {}, m))),
    q.lostExchanges > 0 && note(`${num(q.lostExchanges)} more exchanges were not kept.`),
    steps.length > 1 && !steps.every((e) => e.known) && note('When each began is not known exactly.'),
  ];
}

export const queryDetail = {
  title: 'Query',
  async load(get, before) {
    const remembered = await get('queries', all);
    const query = remembered.items.find((q) => queryID(q) === state.args[0]);
    return { query: query ?? before?.query, gone: !query };
  },
  draw(data) {
    const q = data?.query;
    const head = back(['queries'], 'Slow and failed queries');
    if (!q) return [head, heading('Query'), data && empty('It is not remembered any more: the node keeps the newest ones.')];
    return [
      head, heading(nameLink(q.name), ' ', span('tag', q.type)),
      data.gone && note('The node has forgotten it meanwhile; this is what was known.'),
      queryFacts(q),
      section('What it waited for', null, q.exchanges.length ? waterfall(q) : empty('For no upstream.')),
    ];
  },
};
