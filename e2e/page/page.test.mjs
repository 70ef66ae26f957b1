import assert from 'node:assert/strict';
import net from 'node:net';
import http from 'node:http';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { chromium } from 'playwright-core';
import { Client, Program, dnsServer, freePort, hostile, query } from './world.mjs';

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const patient = Number(process.env.PATIENCE ?? 60_000);
const shots = new URL('./screenshots/', import.meta.url).pathname;

let upstream, program, browser, profile;
const clients = [];
let traffic = null; // asks good names until it is told to stop
let faulty = false; // and such whose upstream refuses

before(async () => {
  upstream = await dnsServer();
  program = await Program.start({ access: 'open', upstream: upstream.port });
  profile = mkdtempSync(join(tmpdir(), 'localcache-chromium-'));
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  });
  for (const address of ['127.0.0.2', '127.0.0.3', '127.0.0.4']) clients.push(await new Client(address, program.port).open());
  mkdirSync(shots, { recursive: true });
});

after(async () => {
  traffic?.stop();
  await browser?.close();
  await program?.close();
  upstream?.close();
  for (const c of clients) c.close();
  if (profile) rmSync(profile, { recursive: true, force: true });
});

// A page that a test has left open has a stream.
afterEach(() => Promise.all(browser.contexts().map((c) => c.close())));

function startTraffic() {
  let going = true, next = 0;
  const run = (async () => {
    for (let i = 0; going; i++) {
      await clients[i % 2].ask(`web-${i % 5}.good.test`);
      if (i % 10 === 0) await clients[1].ask(`nothing-${i % 30}.none.test`);
      if (faulty && Date.now() > next) {
        clients[0].ask(`gone-${i % 4}.broken.test`);
        next = Date.now() + 5000;
      }
      await sleep(5);
    }
  })();
  return { stop: async () => { going = false; await run; } };
}

// open opens the page and notes all that it must not do.
async function open(url = program.url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(patient);
  const wrong = [];
  const origin = new URL(url).origin;
  page.on('console', (m) => { if (m.type() === 'error' || m.type() === 'warning') wrong.push(`console: ${m.text()}`); });
  page.on('pageerror', (e) => wrong.push(`script: ${e.stack}`));
  page.on('dialog', (d) => { wrong.push(`dialog: ${d.message()}`); d.dismiss(); });
  page.on('request', (r) => { if (new URL(r.url()).origin !== origin) wrong.push(`request for ${r.url()}`); });
  await page.addInitScript(() => {
    window.violations = [];
    document.addEventListener('securitypolicyviolation', (e) => window.violations.push(`${e.violatedDirective} ${e.blockedURI}`));
  });
  await page.goto(url);
  page.check = async () => {
    assert.deepEqual(wrong, []);
    assert.deepEqual(await page.evaluate(() => window.violations), [], 'violations of the policy');
    await context.close();
  };
  page.wrong = wrong;
  return page;
}

const verdict = (page, pattern) => page.waitForFunction((p) => new RegExp(p).test(document.querySelector('.verdict')?.textContent ?? ''), pattern.source);
const hash = (page, pattern) => page.waitForFunction((p) => new RegExp(p).test(location.hash), pattern.source).catch(async (e) => { throw new Error(`${page.url()} is not ${pattern}`, { cause: e }); });
const tile = (page, title) => page.locator('.tile', { has: page.getByRole('heading', { name: title, exact: true }) }).locator('.value');

test('it says that nothing has come yet, and what to look at', async () => {
  const page = await open();
  await verdict(page, /Ready: no query has come yet/);
  await page.getByText('No client had to ask again in the last 5 minutes.').waitFor();
  await page.getByText('None is remembered').waitFor();
  await page.getByText('No client asked in the last 5 minutes.').waitFor();
  await page.getByText('No name was asked for in the last hour.').waitFor();
  await page.check();
});

test('the verdict and the numbers follow the traffic by themselves', async () => {
  const page = await open();
  traffic = startTraffic();
  await verdict(page, /^Healthy: .* queries\/s, .* from memory/);
  const seen = new Set();
  for (const until = Date.now() + patient; seen.size < 4 && Date.now() < until; await sleep(300)) seen.add(await page.locator('.tile').first().textContent());
  assert.ok(seen.size >= 4, `the number of queries was only ${[...seen]}`);
  assert.match(await tile(page, 'Queries').textContent(), /^[0-9]/);
  assert.match(await tile(page, 'From memory').textContent(), /%/);
  await page.waitForFunction(() => document.querySelectorAll('.tile .spark .line').length >= 2);
  assert.match(await page.locator('#live').textContent(), /^Healthy/);
  assert.equal(await page.locator('.contact').textContent(), 'Live');
  await page.check();
});

test('pausing stops the changes', async () => {
  const page = await open();
  await verdict(page, /Healthy/);
  await page.getByRole('button', { name: 'Pause' }).press('Enter');
  const before = await page.locator('.tiles').textContent();
  await sleep(5000);
  assert.equal(await page.locator('.tiles').textContent(), before);
  await page.getByRole('button', { name: 'Go on' }).press('Enter');
  await page.waitForFunction((t) => document.querySelector('.tiles').textContent !== t, before);
  await page.check();
});

test('faults of the upstreams and of a client are put into words', async () => {
  const page = await open();
  const [first, second, lossy] = clients;
  faulty = true;
  await Promise.all([
    ...[1, 2, 3, 4].map((i) => first.ask(`gone-${i}.broken.test`)),
    ...[1, 2, 3, 4].map((i) => second.ask(`silent-${i}.drop.test`)),
    ...[1, 2].map((i) => first.ask(`late-${i}.slow.test`)),
    first.ask(hostile),
  ]);
  // musl asks again after 2.5 s from the same port with the same ID, though it was answered at once.
  for (let i = 0; i < 3; i++) {
    const again = query(`cart-${i}.good.test`, 4000 + i);
    lossy.send(again);
    await sleep(2500);
    lossy.send(again);
  }
  await verdict(page, /Upstream 127\.0\.0\.1:\d+ (udp|tcp) fails: .* of [0-9,]+ exchanges in the last minute, mostly (timeout|conn refused), since/);
  await verdict(page, /Client 127\.0\.0\.4 repeats queries: replies are lost \(\d+ times in 5 minutes, musl\)/);
  assert.match(await page.locator('#live').textContent(), /fails/);
  await page.check();
});

// Each kind of row, and where it leads.
const rows = [
  ['Upstreams', /^#\/upstreams\/127\.0\.0\.1%3A\d+\/(udp|tcp)$/, 'Outcomes'],
  ['Slow and failed queries', /^#\/queries\/.+/, 'What it waited for'],
  ['Slow clients', /^#\/pods\/127\.0\.0\.\d$/, 'Over time'],
  ['Asked again', /^#\/pods\/127\.0\.0\.4$/, 'Over time'],
  ['Names', /^#\/names\/.+/, 'Slow and failed queries of it'],
];

const sectionOf = (page, title) => page.locator('section', { has: page.getByRole('heading', { name: title, exact: true }) }).locator('tbody tr').first();

async function arrived(page, pattern, title) {
  await hash(page, pattern);
  await page.getByRole('heading', { name: title, exact: true }).waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.tagName), 'H1', 'the heading of the view has the focus');
  assert.equal(await page.getByText('undefined').count(), 0);
  assert.equal(await page.getByText('NaN').count(), 0);
  await page.goBack();
  await page.locator('.verdict').waitFor();
  assert.match(await page.evaluate(() => location.hash), /^(#\/)?$/);
}

test('each row leads on by a click', async () => {
  const page = await open();
  for (const [title, pattern, next] of rows) {
    await sectionOf(page, title).locator('td').last().click();
    await arrived(page, pattern, next);
    await sectionOf(page, title).locator('a').first().click();
    await arrived(page, pattern, next);
  }
  await page.check();
});

test('each row leads on by the keyboard', async () => {
  const page = await open();
  for (const [title, pattern, next] of rows) {
    await sectionOf(page, title).waitFor();
    await page.evaluate(() => document.activeElement?.blur());
    let there = false;
    for (let i = 0; i < 200 && !there; i++) {
      await page.keyboard.press('Tab');
      there = await page.evaluate((t) => document.activeElement.closest('tbody')?.closest('section')?.querySelector('h2')?.textContent === t && document.activeElement.tagName === 'A', title);
    }
    assert.ok(there, `Tab does not come to a row of ${title}`);
    assert.notEqual(await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle), 'none', 'the focus is seen');
    await page.keyboard.press('Enter');
    await arrived(page, pattern, next);
  }
  await page.check();
});

test('the focus stays where it is while numbers change', async () => {
  const page = await open();
  const link = sectionOf(page, 'Slow clients').locator('a').first();
  await link.focus();
  const text = await page.evaluate(() => document.activeElement.textContent);
  const before = await page.locator('.tiles').textContent();
  await page.waitForFunction((t) => document.querySelector('.tiles').textContent !== t, before);
  await sleep(3000);
  assert.equal(await page.evaluate(() => document.activeElement.textContent), text);
  await page.check();
});

test('the verdict leads to what it is about', async () => {
  const page = await open();
  await verdict(page, /fails/);
  await page.locator('.verdict h1 a').click();
  await hash(page, /^#\/upstreams\//);
  await page.getByRole('heading', { name: 'Latest failures' }).waitFor();
  // From a failing upstream to its queries, to one of them, to its client.
  await sectionOf(page, 'Queries that it was asked for').locator('a').first().click();
  await hash(page, /^#\/queries\//);
  await page.locator('.facts a').first().click();
  await hash(page, /^#\/pods\//);
  await page.getByRole('heading', { name: 'Over time' }).waitFor();
  await page.goBack();
  await hash(page, /^#\/queries\//);
  await page.check();
});

test('a query is told with each exchange, its outcome and its time', async () => {
  const page = await open(program.url + '#/queries?kind=failed');
  const row = page.locator('tbody tr', { hasText: 'drop.test' }).first();
  await row.locator('a').first().click();
  await page.getByRole('heading', { name: 'What it waited for' }).waitFor();
  const steps = await page.locator('section tbody tr').allTextContents();
  assert.ok(steps.length >= 2, steps.join('\n'));
  assert.match(steps[0], /127\.0\.0\.1:\d+.*timeout.*s$/s);
  assert.match(steps.at(-1), /The client waited.*SERVFAIL/s);
  const lengths = await page.locator('.length').evaluateAll((all) => all.map((e) => e.getBoundingClientRect().width));
  assert.equal(lengths.length, steps.length);
  assert.ok(Math.min(...lengths) > 0, `bars ${lengths}`);
  assert.ok(Math.max(...lengths.slice(0, -1)) <= lengths.at(-1) + 1, `an exchange outlasts the wait: ${lengths}`);
  await page.locator('.messages li').first().waitFor();
  await page.check();
});

test('a name that would be markup is text', async () => {
  const page = await open();
  const shown = hostile + '.';
  for (const where of ['#/', '#/names', '#/names?by=slowest', '#/queries', '#/names/' + encodeURIComponent(shown), '#/pods/127.0.0.2']) {
    await page.evaluate((h) => { location.hash = h; }, where);
    await page.waitForFunction((t) => [...document.querySelectorAll('.name')].some((e) => e.textContent.includes(t)) || location.hash === '#/' , shown);
    assert.equal(await page.locator('img, main b').count(), 0, where);
  }
  await page.evaluate((h) => { location.hash = h; }, '#/names/' + encodeURIComponent(shown));
  await page.waitForFunction((t) => document.querySelector('main h1')?.textContent === t, shown);
  await page.locator('tbody tr').first().waitFor();
  await page.check();
});

test('what is in the address makes nothing but text either', async () => {
  for (const bad of ['#/names/%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E', '#/upstreams/%3Cb%3E/udp', '#/%zz', '#/nothing/of/this/kind', '#/?window=<b>&by=__proto__', '#/queries/none', '#/constructor', '#/pods?by=toString']) {
    const page = await open(program.url + bad);
    await page.locator('main h1').first().waitFor();
    assert.equal(await page.locator('img, main b').count(), 0, bad);
    await page.check();
  }
  for (const bad of ['#/pods/../summary', '#/pods/%2e%2e/summary', '#/pods/./pods']) {
    const page = await open();
    const asked = [];
    page.on('request', (r) => asked.push(new URL(r.url()).pathname));
    await page.goto(program.url + bad);
    await page.locator('.verdict').waitFor();
    assert.ok(asked.every((p) => /^\/$|\.(js|css|svg)$|^\/api\/v1\/(stream|overview)$/.test(p)), `${bad}: asked for ${asked}`);
    await page.check();
  }
  const page = await open(program.url + '#/pods/shop/nobody');
  await page.getByText('shop/nobody has not asked this node').waitFor();
  page.wrong.splice(0); // the browser notes the status 404
  await page.check();
});

test('the window is part of the address', async () => {
  const page = await open();
  await page.getByRole('navigation', { name: 'Window of time' }).getByText('1 min').click();
  await hash(page, /window=1m/);
  await page.waitForFunction(() => document.querySelector('.tiles')?.getAttribute('aria-label').includes('the last minute'));
  await sectionOf(page, 'Slow clients').locator('a').first().click();
  await hash(page, /^#\/pods\/.*\?window=1m$/);
  await page.reload();
  await page.getByText('In the last minute', { exact: true }).waitFor();
  await page.goBack();
  await page.locator('.verdict').waitFor();
  await page.goBack();
  assert.doesNotMatch(await page.evaluate(() => location.hash), /window/);
  await page.check();
});

test('lists have their orders, and link to them', async () => {
  const page = await open();
  await page.getByRole('navigation', { name: 'Order of names' }).getByText('SERVFAIL').click();
  await hash(page, /by=servfail/);
  await page.locator('tbody .name', { hasText: /drop\.test|broken\.test/ }).first().waitFor();
  for (const [view, order] of [['Clients', 'Order of clients'], ['Names', 'Order of names'], ['Queries', 'Which queries']]) {
    await page.getByRole('navigation', { name: 'Views' }).getByText(view).click();
    const choices = page.getByRole('navigation', { name: order }).getByRole('link');
    await choices.first().waitFor();
    for (let i = 0; i < await choices.count(); i++) {
      await choices.nth(i).click();
      await page.waitForFunction(([o, n]) => document.querySelectorAll(`nav[aria-label="${o}"] a`)[n].ariaCurrent === 'true', [order, i]);
      await page.locator('main tbody tr, main .empty').first().waitFor();
    }
  }
  await page.check();
});

test('a wrong token is told, the right one opens, one that is taken back closes', async () => {
  const guarded = await Program.start({ access: 'token', upstream: upstream.port });
  try {
    const page = await open(guarded.url);
    const field = page.getByLabel('Token');
    await field.waitFor();
    await page.waitForFunction(() => document.activeElement?.id === 'token');
    await page.keyboard.type('not the token at all');
    await page.keyboard.press('Enter');
    await page.getByText('This token is wrong').waitFor();
    assert.equal(await page.locator('.verdict').count(), 0);
    await field.fill(readFileSync(guarded.token, 'utf8').trim());
    await page.keyboard.press('Enter');
    await verdict(page, /Ready/);
    await page.goto(guarded.url + '#/pods');
    await page.getByText('No client asked').waitFor();
    assert.deepEqual(await page.evaluate(() => [localStorage.length, document.cookie, sessionStorage.length]), [0, '', 1]);
    assert.ok(!page.url().includes('0123456789'));
    writeFileSync(guarded.token, 'another token of enough length\n');
    await field.waitFor();
    await page.getByText('This token is wrong, or was taken back').waitFor();
    assert.equal(await page.evaluate(() => sessionStorage.length), 0);
    for (const w of page.wrong) assert.match(w, /401/); // the browser notes these, and nothing else
    page.wrong.splice(0);
    for (const scheme of ['light', 'dark']) await accessible(page, scheme, 'token');
    await page.check();
  } finally {
    await guarded.close();
  }
});

test('through a forwarded unix socket it is the same, and other sites get nothing', async () => {
  const forward = net.createServer((c) => {
    const s = net.connect(program.socket);
    for (const x of [c, s]) x.on('error', () => { c.destroy(); s.destroy(); });
    c.pipe(s).pipe(c);
  });
  forward.listen(await freePort(), '127.0.0.1');
  await once(forward, 'listening');
  const { port } = forward.address();
  try {
    const page = await open(`http://localhost:${port}/`);
    await verdict(page, /fails|Healthy/);
    await sectionOf(page, 'Slow clients').locator('a').first().click();
    await page.getByRole('heading', { name: 'Over time' }).waitFor();
    await page.check();
    // A name of another site that leads to the forwarded port (DNS rebinding).
    const status = await new Promise((done, fail) => http.get({ port, host: '127.0.0.1', path: '/api/v1/pods', headers: { Host: `evil.example:${port}` } }, (r) => { r.resume(); done(r.statusCode); }).on('error', fail));
    assert.equal(status, 403);
  } finally {
    forward.close();
  }
});

test('where there are too many streams, it asks now and then', async () => {
  const controllers = [];
  try {
    // The streams of the pages before end in a moment.
    for (const until = Date.now() + patient; controllers.length < 8; await sleep(50)) {
      assert.ok(Date.now() < until, `only ${controllers.length} streams`);
      const a = new AbortController();
      const r = await fetch(program.url + 'api/v1/stream', { signal: a.signal });
      if (r.status === 200) controllers.push(a);
      else await r.text();
    }
    const page = await open();
    await verdict(page, /fails|Healthy/);
    await page.waitForFunction(() => document.querySelector('.contact').textContent === 'Every 10 s');
    const before = await page.locator('.tiles').textContent();
    await page.waitForFunction((t) => document.querySelector('.tiles').textContent !== t, before);
    for (const w of page.wrong) assert.match(w, /503/);
    page.wrong.splice(0);
    for (const a of controllers) a.abort();
    await page.waitForFunction(() => document.querySelector('.contact').textContent === 'Live');
    await page.check();
  } finally {
    for (const a of controllers) a.abort();
  }
});

// accessible runs axe in a scheme and asserts that it finds nothing.
async function accessible(page, colorScheme, what) {
  await page.emulateMedia({ colorScheme });
  await page.evaluate(axe);
  const found = await page.evaluate(() => window.axe.run(document, { runOnly: { type: 'tag', values: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice'] } }));
  const list = found.violations.map((v) => `${what}, ${colorScheme}: ${v.id}: ${v.help}\n` + v.nodes.map((n) => `  ${n.html}\n  ${n.failureSummary}`).join('\n'));
  assert.deepEqual(list, []);
  assert.ok(found.passes.some((p) => p.id === 'color-contrast'), 'contrast was looked at');
}

test('axe finds nothing, in light and dark, wide and narrow; screenshots', async () => {
  await clients[0].ask(hostile);
  const views = { overview: '#/', upstreams: '#/upstreams', pods: '#/pods', pod: '#/pods/127.0.0.2', names: '#/names', name: '#/names/' + encodeURIComponent(hostile + '.'), queries: '#/queries' };
  for (const width of [1280, 390]) {
    const page = await open(program.url, { viewport: { width, height: 900 }, reducedMotion: 'reduce' });
    await verdict(page, /fails/);
    assert.equal(await page.locator('.dot').evaluate((e) => getComputedStyle(e).animationName), 'none');
    await sleep(4500); // some history
    const look = async (name) => {
      for (const scheme of ['light', 'dark']) {
        await accessible(page, scheme, `${name} ${width}`);
        await page.screenshot({ path: join(shots, `${name}-${scheme}-${width}.png`), fullPage: true });
      }
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(wide <= 0, `${name} at ${width}: ${wide} px wider than the window`);
    };
    for (const [name, where] of Object.entries(views)) {
      await page.evaluate((h) => { location.hash = h; }, where);
      await page.locator('main tbody tr, main .empty').first().waitFor();
      await look(name);
    }
    await page.evaluate(() => { location.hash = '#/upstreams'; });
    await page.locator('main tbody tr').first().locator('a').first().click();
    await page.getByRole('heading', { name: 'Outcomes' }).waitFor();
    await look('upstream');
    await page.evaluate(() => { location.hash = '#/queries?kind=failed'; });
    await page.locator('tbody tr', { hasText: 'drop.test' }).first().locator('a').first().click();
    await page.getByRole('heading', { name: 'What it waited for' }).waitFor();
    await look('query');
    await page.check();
  }
});

test('a restart is noticed, and got over', async () => {
  const page = await open();
  await verdict(page, /fails|Healthy/);
  await traffic.stop();
  await program.stop();
  await page.waitForFunction(() => document.querySelector('.contact').textContent.startsWith('No contact since'));
  await page.getByText('what follows is from then').waitFor();
  await program.run();
  await page.waitForFunction(() => document.querySelector('.contact').textContent === 'Live');
  await verdict(page, /Ready: no query has come yet/);
  page.wrong.splice(0); // connections that were refused
  await page.check();
});
