// What the page is tested with: DNS servers that behave badly on purpose, clients, and the real program between them.

import dgram from 'node:dgram';
import net from 'node:net';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

// A name that would be markup, if a page let it. In DNS a label may have any byte.
export const hostile = '<img/src=x/onerror=alert`1`>.<b>bold</b>.evil.test';

function wireName(name) {
  const labels = name.split('.').filter((l) => l !== '').map((l) => Buffer.from(l, 'latin1'));
  return Buffer.concat([...labels.flatMap((l) => [Buffer.from([l.length]), l]), Buffer.from([0])]);
}

export function query(name, id) {
  const header = Buffer.from([id >> 8, id & 255, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
  return Buffer.concat([header, wireName(name), Buffer.from([0, 1, 0, 1])]);
}

// question reads the question of a message.
function question(message) {
  const labels = [];
  let at = 12;
  while (message[at]) {
    labels.push(message.toString('latin1', at + 1, at + 1 + message[at]));
    at += 1 + message[at];
  }
  return { name: labels.join('.').toLowerCase(), type: message.readUInt16BE(at + 1), end: at + 5 };
}

function answer(message) {
  const q = question(message);
  const missing = q.name.endsWith('none.test');
  const head = Buffer.from(message.subarray(0, 12));
  head[2] |= 0x80;
  head[3] = 0x80 | (missing ? 3 : 0);
  head.fill(0, 6);
  const record = q.type === 1 && !missing ? Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]) : Buffer.alloc(0);
  if (record.length) head[7] = 1;
  return Buffer.concat([head, message.subarray(12, q.end), record]);
}

// dnsServer answers over UDP and TCP at one port: names below slow.test late, those below drop.test not at all.
export async function dnsServer() {
  const udp = dgram.createSocket('udp4');
  const late = new Set();
  const respond = (message, send) => {
    const { name } = question(message);
    if (name.endsWith('drop.test')) return;
    const wait = name.endsWith('slow.test') || name.endsWith('evil.test') ? 180 : 1;
    const timer = setTimeout(() => {
      late.delete(timer);
      send(answer(message));
    }, wait);
    late.add(timer);
  };
  udp.on('message', (m, from) => respond(m, (a) => udp.send(a, from.port, from.address)));
  udp.bind(0, '127.0.0.1');
  await once(udp, 'listening');
  const { port } = udp.address();
  const open = new Set();
  const tcp = net.createServer((c) => {
    open.add(c);
    c.on('close', () => open.delete(c)).on('error', () => {});
    let read = Buffer.alloc(0);
    c.on('data', (data) => {
      read = Buffer.concat([read, data]);
      while (read.length > 2 && read.length >= 2 + read.readUInt16BE(0)) {
        const message = read.subarray(2, 2 + read.readUInt16BE(0));
        read = read.subarray(2 + message.length);
        respond(message, (a) => c.writable && c.write(Buffer.concat([Buffer.from([a.length >> 8, a.length & 255]), a])));
      }
    });
  });
  tcp.listen(port, '127.0.0.1');
  await once(tcp, 'listening');
  return {
    port,
    close() {
      late.forEach(clearTimeout);
      udp.close();
      tcp.close();
      open.forEach((c) => c.destroy());
    },
  };
}

// freePort is one that nobody has now, over both transports.
export async function freePort() {
  const s = net.createServer();
  s.listen(0, '127.0.0.1');
  await once(s, 'listening');
  const { port } = s.address();
  s.close();
  await once(s, 'close');
  return port;
}

// Client asks the program from an address of its own.
export class Client {
  constructor(address, port) {
    Object.assign(this, { address, port, waiting: new Map(), id: 0 });
    this.socket = dgram.createSocket('udp4');
    this.socket.on('message', (m) => {
      const id = m.readUInt16BE(0);
      this.waiting.get(id)?.(m);
      this.waiting.delete(id);
    });
  }
  async open() {
    this.socket.bind(0, this.address);
    await once(this.socket, 'listening');
    return this;
  }
  send(message) {
    this.socket.send(message, this.port, '127.0.0.1');
  }
  // ask waits for the answer; null where none comes.
  ask(name) {
    this.id = (this.id + 1) % 65536; // the same again would look like a question that is repeated
    const message = query(name, this.id);
    return new Promise((done) => {
      const timer = setTimeout(() => done(null), 15_000);
      this.waiting.set(message.readUInt16BE(0), (m) => {
        clearTimeout(timer);
        done(m);
      });
      this.send(message);
    });
  }
  close() {
    this.socket.close();
  }
}

// Program is the real one, with a Corefile of its own.
export class Program {
  static async start({ access, upstream }) {
    const p = new Program();
    p.dir = mkdtempSync(join(tmpdir(), 'localcache-page-'));
    p.port = await freePort();
    p.api = await freePort();
    p.url = `http://127.0.0.1:${p.api}/`;
    p.socket = join(p.dir, 'diag.sock');
    p.token = join(p.dir, 'token');
    const closed = await freePort();
    writeFileSync(p.token, '0123456789abcdef0123456789abcdef\n', { mode: 0o600 });
    writeFileSync(join(p.dir, 'Corefile'), `.:${p.port} {
    bind 127.0.0.1
    diag {
        listen 127.0.0.1:${p.api}
        access ${access === 'token' ? 'token ' + p.token : access}
    }
    cache 60
    forward broken.test 127.0.0.1:${closed}
    forward . 127.0.0.1:${upstream}
}
`);
    await p.run();
    return p;
  }
  async run() {
    this.output = '';
    this.child = spawn(process.env.LOCALCACHE, ['-conf', join(this.dir, 'Corefile')], { cwd: this.dir, env: { ...process.env, LOCALCACHE_SOCKET: this.socket }, stdio: ['ignore', 'pipe', 'pipe'] });
    for (const s of [this.child.stdout, this.child.stderr]) s.on('data', (d) => (this.output += d));
    this.ended = once(this.child, 'exit');
    for (let i = 0; ; i++) {
      if (this.child.exitCode !== null || i > 300) throw new Error(`localcache does not answer at ${this.url}:\n${this.output}`);
      try {
        if ((await fetch(this.url)).ok) return;
      } catch { /* not yet */ }
      await sleep(100);
    }
  }
  async stop() {
    this.child.kill('SIGTERM');
    await this.ended;
  }
  async close() {
    if (this.child.exitCode === null) await this.stop();
    rmSync(this.dir, { recursive: true, force: true });
  }
}
