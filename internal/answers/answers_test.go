package answers

import (
	"testing"
	"time"
)

func TestLeft(t *testing.T) {
	now := time.Now()
	a := &Answer{TTL: 30, Stored: now}
	for after, left := range map[time.Duration]int64{
		0: 30, 999 * time.Millisecond: 30, time.Second: 29, 29999 * time.Millisecond: 1, 30 * time.Second: 0, 95 * time.Second: -65,
	} {
		if got := a.Left(now.Add(after)); got != left {
			t.Errorf("after %v: %d, want %d", after, got, left)
		}
	}
}

func TestUses(t *testing.T) {
	now := time.Now()
	a := &Answer{Stored: now}
	for i, use := range []struct {
		at   time.Duration
		want int
	}{{0, 1}, {10, 2}, {20, 3}, {30, 4}, {41, 1}, {41, 2}} {
		if got := a.Use(10*time.Second, now.Add(use.at*time.Second)); got != use.want || a.Uses() != use.want {
			t.Errorf("use %d: %d, and %d afterwards, want %d", i, got, a.Uses(), use.want)
		}
	}
	a.SetUses(7, now.Add(60*time.Second))
	if got := a.Use(10*time.Second, now.Add(69*time.Second)); got != 8 {
		t.Errorf("%d uses after 7", got)
	}
}
