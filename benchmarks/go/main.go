// Command brokerload drives a broker with load, checks every answer, and prints what it measured as one JSON object.
//
//	brokerload publish -address HOST:PORT [-connections 4] [-callers 25] [-deadline 5s]   callers that publish one after another
//	brokerload batch   -address HOST:PORT [-connections 4] [-callers 25] [-batch 100]     the same, many messages a call
//	brokerload stream  -address HOST:PORT [-connections 4] [-window 8] [-batch 100]       a stream of them on each connection
//	brokerload fetch   -address HOST:PORT [-connections 4] [-callers 25]                  the same, fetching random ids
//	brokerload fanout  -address HOST:PORT [-subscribers 100] [-connections 4] [-window 256]   one subject, many subscribers
//	brokerload replay  -address HOST:PORT [-messages 200000] [-singly]                    reading a log from its beginning
//	brokerload latency -address HOST:PORT [-rate 200]                                     publishes at a fixed rate
//	brokerload stalled -address HOST:PORT [-subscribers 64] [-stalled 64] [-rate 500]     the same beside some that read nothing
//	brokerload idle    -address HOST:PORT -pid PID [-subscribers 5000]                    memory per open subscription
//
// A number whose "problem" is not empty is void: an answer was an error, an id was missing, doubled or out of order.
// With -pid it reads the server's CPU time at both ends of the measured window.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"time"
)

type options struct {
	address     string
	pid         int
	subject     string
	connections int
	callers     int
	subscribers int
	stalled     int
	window      int
	batch       int
	messages    int
	singly      bool
	rate        int
	bodyBytes   int
	expiration  int
	deadline    time.Duration
	warmUp      time.Duration
	length      time.Duration
}

// result is what is printed. Calls are those that ended inside the measured window; for fanout they are deliveries.
type result struct {
	Calls          int64   `json:"calls"`
	Seconds        float64 `json:"seconds"`
	ServerCPU      float64 `json:"server_cpu_s"`
	P50            float64 `json:"p50_ms"`
	P99            float64 `json:"p99_ms"`
	BytesPerStream float64 `json:"bytes_per_stream"`
	Problem        string  `json:"problem"`
}

func main() {
	modes := map[string]func(options) (result, error){
		"publish": publish, "fetch": fetch, "fanout": fanOut, "latency": latency, "idle": idle,
		"batch": publishBatches, "stream": publishStreams, "replay": replay, "stalled": stalled,
	}
	if len(os.Args) < 2 || modes[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: brokerload publish|batch|stream|fetch|fanout|replay|latency|stalled|idle -address HOST:PORT [flags]; -h lists the flags")
		os.Exit(2)
	}
	result, err := modes[os.Args[1]](parse(os.Args[1], os.Args[2:]))
	if err != nil {
		result.Problem = err.Error()
	}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		panic(err)
	}
}

func parse(mode string, arguments []string) options {
	var o options
	flags := flag.NewFlagSet("brokerload "+mode, flag.ExitOnError)
	flags.StringVar(&o.address, "address", "127.0.0.1:50051", "the server")
	flags.IntVar(&o.pid, "pid", 0, "process id of the server; 0: its CPU time is not measured")
	flags.StringVar(&o.subject, "subject", "bench", "a subject that nobody else uses: ids must start at 1")
	flags.IntVar(&o.connections, "connections", 4, "connections")
	flags.IntVar(&o.callers, "callers", 25, "callers on each connection (publish, fetch)")
	flags.IntVar(&o.subscribers, "subscribers", 100, "subscribers over all connections (fanout, idle)")
	flags.IntVar(&o.stalled, "stalled", 0, "subscribers that read nothing until the end (stalled)")
	flags.IntVar(&o.window, "window", 256, "publishes in flight (fanout), requests in flight on each stream (stream)")
	flags.IntVar(&o.batch, "batch", 100, "messages of a request (batch, stream)")
	flags.IntVar(&o.messages, "messages", 200_000, "messages to read (replay)")
	flags.BoolVar(&o.singly, "singly", false, "by Subscribe, not by SubscribeBatch (replay)")
	flags.IntVar(&o.rate, "rate", 200, "calls per second (latency, stalled)")
	flags.IntVar(&o.bodyBytes, "body", 100, "bytes of a body, at least 8")
	flags.IntVar(&o.expiration, "expiration", 3600, "seconds to keep messages")
	flags.DurationVar(&o.deadline, "deadline", 0, "deadline of each call; 0: none")
	flags.DurationVar(&o.warmUp, "warm-up", 300*time.Millisecond, "load before the measured window")
	flags.DurationVar(&o.length, "length", 1500*time.Millisecond, "length of the measured window")
	_ = flags.Parse(arguments) // ExitOnError
	return o
}
