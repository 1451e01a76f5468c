package main

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// histogram counts durations, from 1 us to hours, to within 1.6 %. Any goroutine may add.
type histogram [64 * 64]atomic.Int64

func (h *histogram) add(d time.Duration) {
	us := uint64(max(d.Microseconds(), 0))
	if us < 64 {
		h[us].Add(1)
		return
	}
	shift := bits.Len64(us) - 7 // keeps the seven leading bits; the first of them is implied
	h[64*(shift+1)+int(us>>shift)-64].Add(1)
}

// quantile returns the duration, in milliseconds, that the share q of all stay below.
func (h *histogram) quantile(q float64) float64 {
	var total, seen int64
	for i := range h {
		total += h[i].Load()
	}
	for i := range h {
		seen += h[i].Load()
		if total > 0 && float64(seen) >= q*float64(total) {
			if i < 64 {
				return float64(i) / 1000
			}
			return float64(uint64(i%64+64)<<(i/64-1)) / 1000
		}
	}
	return 0
}

// meter measures the steady part of a run: what ends inside the window counts.
type meter struct {
	open      atomic.Bool
	calls     atomic.Int64
	durations histogram
}

// count notes calls that ended now.
func (m *meter) count(calls int64) {
	if m.open.Load() {
		m.calls.Add(calls)
	}
}

// took notes how long one call took.
func (m *meter) took(d time.Duration) {
	if m.open.Load() {
		m.durations.add(d)
	}
}

// measure waits for the warm-up and the window and returns what was counted in it.
func (m *meter) measure(o options) (result, error) {
	time.Sleep(o.warmUp)
	cpu, err := cpuTime(o.pid)
	if err != nil {
		return result{}, err
	}
	began := time.Now()
	m.open.Store(true)
	time.Sleep(o.length)
	m.open.Store(false)
	seconds := time.Since(began).Seconds()
	cpuAfter, err := cpuTime(o.pid)
	if m.calls.Load() == 0 {
		err = errors.Join(err, errors.New("nothing ended inside the measured window"))
	}
	return result{
		Calls: m.calls.Load(), Seconds: seconds, ServerCPU: (cpuAfter - cpu).Seconds(),
		P50: m.durations.quantile(0.5), P99: m.durations.quantile(0.99),
	}, err
}

// cpuTime returns the CPU time, user and system, that all threads of a process have used. In /proc it has steps of 10 ms.
func cpuTime(pid int) (time.Duration, error) {
	if pid == 0 {
		return 0, nil
	}
	var now unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &now); err != nil { // clock_getcpuclockid(3)
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	return time.Duration(now.Nano()), nil
}

// residentBytes returns how much memory a process has in RAM.
func residentBytes(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		return 0, err
	}
	return resident * int64(os.Getpagesize()), nil
}
