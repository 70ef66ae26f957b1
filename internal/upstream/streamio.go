package upstream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/observe"
)

// takeBatch moves what waits to be written to batch. It returns false if there is nothing; then no goroutine is
// flushing.
func (c *streamConn) takeBatch() bool {
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	c.writing = time.Time{}
	if c.spare = c.batch; cap(c.spare) > frameKeep {
		c.spare = nil
	}
	c.written = 0
	c.batch, c.out, c.unsent = c.out, c.spare[:0], 0
	if len(c.batch) == 0 || c.gone {
		c.flushing = false
		return false
	}
	c.writing = time.Now()
	c.pool.clock.wakeBy(c.writing.Add(partialTime))
	return true
}

// flush writes once, without waiting for the kernel. The writer goroutine handles what the kernel does not accept and
// what was queued meanwhile: the goroutine that flushes waits for an answer of its own.
func (c *streamConn) flush() {
	if !c.takeBatch() {
		return
	}
	if err := c.raw.Write(c.writeStep); err != nil {
		c.writeErr = err
	}
	if c.writeErr != nil {
		c.notWritten(c.writeErr)
		return
	}
	c.pool.mu.Lock()
	if c.written == len(c.batch) && len(c.out) == 0 {
		c.writing = time.Time{}
		c.flushing = false
		c.pool.mu.Unlock()
		return
	}
	c.pool.mu.Unlock()
	c.wakeWriter()
}

// writeOnce makes one system call.
func (c *streamConn) writeOnce(fd uintptr) bool {
	n, errno := rawWrite(fd, c.batch)
	switch errno {
	case 0:
		c.written = n
	case unix.EAGAIN:
	default:
		c.writeErr = os.NewSyscallError("write", errno)
	}
	return true
}

// notWritten handles a failed write on c. A connection that the other end closed is left to the reader, which notices
// after reading the answers that arrived before: they count, and without them a connection that worked would look
// like one that never did. Nothing is written until then; if the reader finds nothing, c is stuck.
func (c *streamConn) notWritten(err error) {
	outcome := outcomeOf(err)
	if outcome == observe.Reset {
		c.pool.mu.Lock()
		defer c.pool.mu.Unlock()
		c.retire()
		return
	}
	c.fail(outcome, fmt.Errorf("%w: %w", errNotWritten, err))
}

// write is the writer: it writes whenever it is woken, with waiting.
func (c *streamConn) write() {
	for {
		select {
		case <-c.done:
			return
		case <-c.wake:
		}
		if rest := c.batch[c.written:]; len(rest) > 0 {
			if _, err := c.conn.Write(rest); err != nil {
				c.notWritten(err)
				return
			}
		}
		runtime.Gosched() // for the same reason as in submit
		for c.takeBatch() {
			if _, err := c.conn.Write(c.batch); err != nil {
				c.notWritten(err)
				return
			}
		}
	}
}

// delivery is a message and the call that its ID belongs to.
type delivery struct {
	msg  []byte
	id   uint16
	call *call
}

// read reads answers until the connection ends.
func (c *streamConn) read() {
	var in frames
	var batch []delivery
	var from io.Reader = c.conn
	if c.raw != nil {
		from = newRawReader(c.raw)
	}
	for {
		n, err := from.Read(in.space())
		if n > 0 {
			in.filled(n)
			batch, err = c.received(&in, batch[:0], err)
		}
		if err == nil {
			continue
		}
		outcome := outcomeOf(err)
		switch {
		case errors.Is(err, errBadFrame):
			outcome = observe.BadReply
		case outcome == observe.Reset:
			err = fmt.Errorf("%w: %w", errHungUp, err)
		}
		c.fail(outcome, err)
		return
	}
}

// received handles all complete messages of in. It returns readErr, unless there is a worse error.
func (c *streamConn) received(in *frames, batch []delivery, readErr error) ([]delivery, error) {
	var err error
	for {
		msg, bad := in.next()
		if msg == nil {
			err = bad
			break
		}
		batch = append(batch, delivery{msg: msg, id: binary.BigEndian.Uint16(msg)})
	}
	now := time.Now()
	late := 0
	pool := c.pool
	pool.mu.Lock()
	c.heard = now
	if !in.partial() {
		c.partial = time.Time{}
	} else if c.partial.IsZero() || len(batch) > 0 {
		c.partial = now
		pool.clock.wakeBy(now.Add(partialTime))
	}
	for i := range batch {
		d := &batch[i]
		slot := uint8(d.id & (slots - 1))
		unasked := false
		switch {
		case c.id(slot) != d.id:
			unasked = true
		case c.calls[slot] != nil:
			d.call = c.take(slot, now)
			c.answers++
		case c.lost > 0 && !slices.Contains(c.free, slot):
			c.lost--
			c.free = append(c.free, slot)
			late++
		default:
			unasked = !c.gone
		}
		if unasked {
			err = errUnasked
			batch = batch[:i]
			break
		}
	}
	if c.busy == 0 {
		if c.retired {
			c.shut()
		} else {
			pool.trim()
		}
	}
	ready := c.ready
	pool.mu.Unlock()

	for range late {
		pool.path.sink.Drop(observe.DropLate)
	}
	var answered bool
	for i := range batch {
		a := batch[i].call
		if a == nil {
			continue
		}
		if a.q.judge(batch[i].msg) != accepted {
			pool.mu.Lock()
			b := c.broken(observe.BadReply, errWrong, a)
			pool.mu.Unlock()
			b.finish(now)
			err = errWrong
			continue
		}
		answered = true
		began := a.start
		if ready.After(began) {
			began = ready
		}
		pool.path.rtt.sample(now.Sub(began), now)
		reply := a.keep(batch[i].msg)
		a.finish(reply, observe.OutcomeOf(int(reply[3]&0x0f)), nil, now)
	}
	if answered && err == nil {
		pool.path.answered(now)
	}
	clear(batch)
	if err == nil {
		err = readErr
	}
	return batch, err
}
