package upstream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"localcache.dev/localcache/internal/observe"
)

// write sends what add has put into out.
func (c *streamConn) write() {
	var spare []byte
	for {
		select {
		case <-c.done:
			return
		case <-c.wake:
		}
		// Let those run that are about to ask, too: their questions share the system call.
		runtime.Gosched()
		c.pool.mu.Lock()
		batch := c.out
		c.out = spare[:0]
		if len(batch) > 0 {
			c.writing = time.Now()
			c.pool.clock.wakeBy(c.writing.Add(partialTime))
		}
		c.pool.mu.Unlock()
		if len(batch) == 0 {
			spare = batch
			continue
		}
		if _, err := c.conn.Write(batch); err != nil {
			c.fail(outcomeOf(err), fmt.Errorf("%w: %w", errNotWritten, err))
			return
		}
		c.pool.mu.Lock()
		c.writing = time.Time{}
		c.pool.mu.Unlock()
		spare = batch
		if cap(spare) > frameKeep {
			spare = nil
		}
	}
}

// delivery is a message and the call whose answer it claims to be.
type delivery struct {
	msg  []byte
	id   uint16
	call *call
}

// read takes answers until the connection ends.
func (c *streamConn) read() {
	var in frames
	var batch []delivery
	for {
		n, err := c.conn.Read(in.space())
		if n > 0 {
			in.filled(n)
			if batch, err = c.received(&in, batch[:0], err); err == nil {
				continue
			}
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

// received takes all complete messages of in. readErr is passed through, unless there is worse.
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
		if a.q.judge(batch[i].msg, batch[i].id) != accepted {
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
		reply := bytes.Clone(batch[i].msg)
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
