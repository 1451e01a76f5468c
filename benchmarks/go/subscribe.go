package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Subscriptions, by a reader of HTTP/2 frames: grpc-go would need more time to receive a message than a server to send it.

const (
	streamCredit     = 1 << 20
	connectionCredit = 16 << 20
)

// subscriptions are the streams of one connection. One goroutine reads them; others may ask for lowest.
type subscriptions struct {
	socket   net.Conn
	framer   *http2.Framer
	output   *bufio.Writer
	streams  []subscription
	credit   uint32       // what the server may send on a stream at first
	owed     uint32       // flow-control credit of the connection, to be given back
	lowest   atomic.Int64 // every stream has the ids 1 to lowest
	atLowest int          // how many streams stand at lowest
	advanced func()       // called when lowest has grown
	meter    *meter
}

type subscription struct {
	lastID  int64
	partial []byte // the beginning of a message whose end has not come
	owed    uint32
	ended   bool
}

// subscribe opens streams on one connection and returns when the server has answered each with its headers.
func subscribe(o options, streams int, credit uint32, meter *meter, advanced func()) (*subscriptions, error) {
	socket, err := net.Dial("tcp", o.address)
	if err != nil {
		return nil, err
	}
	output := bufio.NewWriter(socket)
	framer := http2.NewFramer(output, bufio.NewReaderSize(socket, 1<<18))
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	framer.SetReuseFrames()
	s := &subscriptions{
		socket: socket, framer: framer, output: output, streams: make([]subscription, streams), atLowest: streams,
		advanced: advanced, meter: meter, credit: credit,
	}
	if err := errors.Join(s.open(o), s.awaitHeaders()); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *subscriptions) close() { _ = s.socket.Close() }

func (s *subscriptions) open(o options) error {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	message := subscribeRequest(o.subject)
	data := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
	_, err := s.output.WriteString(http2.ClientPreface)
	err = errors.Join(err,
		s.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: s.credit}),
		s.framer.WriteWindowUpdate(0, connectionCredit))
	for i := range s.streams {
		block.Reset()
		for _, field := range [][2]string{
			{":method", "POST"}, {":scheme", "http"}, {":path", subscribeMethod}, {":authority", o.address},
			{"te", "trailers"}, {"content-type", "application/grpc"},
		} {
			err = errors.Join(err, encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}))
		}
		id := uint32(2*i + 1)
		headers := http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true}
		err = errors.Join(err, s.framer.WriteHeaders(headers), s.framer.WriteData(id, true, data))
	}
	return errors.Join(err, s.output.Flush())
}

// wake lets the server send on streams that had no credit. It must be called before read.
func (s *subscriptions) wake() error {
	var err error
	for i := range s.streams {
		err = errors.Join(err, s.framer.WriteWindowUpdate(uint32(2*i+1), wakeCredit))
	}
	return errors.Join(err, s.output.Flush())
}

func (s *subscriptions) awaitHeaders() error {
	for standing := 0; standing < len(s.streams); {
		frame, err := s.framer.ReadFrame()
		if err != nil {
			return err
		}
		if _, headers := frame.(*http2.MetaHeadersFrame); headers {
			standing++
		}
		if err := s.handle(frame); err != nil {
			return err
		}
	}
	return nil
}

// read handles frames until the connection ends or something is wrong.
func (s *subscriptions) read() error {
	for {
		frame, err := s.framer.ReadFrame()
		if err == nil {
			err = s.handle(frame)
		}
		if err != nil {
			return err
		}
	}
}

func (s *subscriptions) handle(frame http2.Frame) error {
	switch frame := frame.(type) {
	case *http2.DataFrame:
		return s.data(frame)
	case *http2.MetaHeadersFrame:
		if frame.StreamEnded() || frame.PseudoValue("status") != "200" {
			return fmt.Errorf("a subscription ended or was refused: %v", frame.Fields)
		}
	case *http2.SettingsFrame:
		if !frame.IsAck() {
			return errors.Join(s.framer.WriteSettingsAck(), s.output.Flush())
		}
	case *http2.PingFrame:
		if !frame.IsAck() {
			return errors.Join(s.framer.WritePing(true, frame.Data), s.output.Flush())
		}
	case *http2.RSTStreamFrame, *http2.GoAwayFrame:
		return fmt.Errorf("the server ended a subscription: %v", frame)
	}
	return nil
}

func (s *subscriptions) data(frame *http2.DataFrame) error {
	stream := &s.streams[frame.StreamID/2]
	before := stream.lastID
	if err := stream.feed(frame.Data(), s.meter); err != nil {
		return err
	}
	s.meter.count(stream.lastID - before)
	if before == s.lowest.Load() && stream.lastID > before {
		s.atLowest--
	}
	if s.atLowest == 0 {
		s.raiseLowest()
	}
	return s.giveBack(frame.StreamID, stream, frame.Length)
}

func (s *subscriptions) raiseLowest() {
	lowest := slices.MinFunc(s.streams, func(a, b subscription) int { return int(a.lastID - b.lastID) }).lastID
	for i := range s.streams {
		if s.streams[i].lastID == lowest {
			s.atLowest++
		}
	}
	s.lowest.Store(lowest)
	s.advanced()
}

// giveBack lets the server send as much again as it has sent, in steps of half a window.
func (s *subscriptions) giveBack(id uint32, stream *subscription, length uint32) error {
	s.owed += length
	stream.owed += length
	var err error
	if stream.owed >= streamCredit/2 {
		err = s.framer.WriteWindowUpdate(id, stream.owed)
		stream.owed = 0
	}
	if s.owed >= connectionCredit/2 {
		err = errors.Join(err, s.framer.WriteWindowUpdate(0, s.owed))
		s.owed = 0
	}
	return errors.Join(err, s.output.Flush())
}

// feed takes bytes of the stream: messages that must continue its ids.
func (s *subscription) feed(data []byte, meter *meter) error {
	if len(s.partial) > 0 {
		data = append(s.partial, data...)
	}
	now := time.Now()
	for len(data) >= 5 {
		size := int(binary.BigEndian.Uint32(data[1:5]))
		if len(data) < 5+size {
			break
		}
		id, body, err := deliveredMessage(data[5 : 5+size])
		if err != nil {
			return err
		}
		if id != s.lastID+1 {
			return fmt.Errorf("a subscriber got id %d after %d", id, s.lastID)
		}
		stamp, err := stampOf(body)
		if err != nil {
			return err
		}
		meter.took(now.Sub(stamp))
		s.lastID, data = id, data[5+size:]
	}
	s.partial = append(s.partial[:0], data...)
	return nil
}
