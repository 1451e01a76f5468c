// Command peertest tries the broker's contract through grpc-go, with code generated from protos/broker.proto.
//
//	peertest -address HOST:PORT [-metrics HOST:PORT] [-only NAME]
//	peertest -address HOST:PORT -drain      prints "ready"; then stop the broker, with SIGTERM
//
// It prints "ok NAME" or "FAIL NAME: why" for each case, and exits with 1 when one failed. The broker has to run with
// its default limits; each case uses subjects of its own.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"
)

const caseTimeout = 60 * time.Second

type testCase struct {
	name string
	try  func(ctx context.Context, t *trial) error
}

// Ordered from what must work to what must be refused.
var cases = []testCase{
	{"in_order_to_three_subscribers", inOrderToThree},
	{"no_delivery_across_subjects", noCrossDelivery},
	{"no_history_for_a_new_subscriber", noHistory},
	{"messages_arrive_whole", messagesArriveWhole},
	{"expired_and_invalid_ids_told_apart", expiredAndInvalid},
	{"keep", keep},
	{"deadline_ends_a_subscription", deadline},
	{"cancel_ends_one_subscription", cancelOne},
	{"slow_subscriber_is_cut_alone", slowSubscriber},
	{"concurrent_on_one_subject", concurrentOnOne},
	{"concurrent_on_many_subjects", concurrentOnMany},
	{"unknown_method", unknownMethod},
	{"corrupt_protobuf", corruptProtobuf},
	{"oversize_body", oversizeBody},
	{"bad_subjects", badSubjects},
	{"bad_expirations", badExpirations},
	{"bad_headers", badHeaders},
	{"batch_of_many", batchOfMany},
	{"atomic_batch", atomicBatch},
	{"stream_of_many", streamOfMany},
	{"log_in_batches", logInBatches},
	{"log_in_pages", logInPages},
	{"health_and_reflection", healthAndReflection},
}

func main() {
	address := flag.String("address", "127.0.0.1:50051", "the broker")
	metrics := flag.String("metrics", "", "its metrics endpoint: checks that no subscriber is left at the end")
	only := flag.String("only", "", "run this case alone")
	drain := flag.Bool("drain", false, "see what a stopping broker does")
	flag.Parse()

	selected := cases
	switch {
	case *drain:
		selected = []testCase{{"a_stopping_broker_says_so", stoppingBroker}}
	case *metrics != "":
		noneLeft := func(ctx context.Context, _ *trial) error { return noSubscriberLeft(ctx, *metrics) }
		selected = append(selected, testCase{"no_subscriber_left", noneLeft})
	}
	failed := 0
	for _, c := range selected {
		if *only != "" && *only != c.name {
			continue
		}
		if err := run(c, *address); err != nil {
			fmt.Printf("FAIL %s: %v\n", c.name, err)
			failed++
		} else {
			fmt.Printf("ok %s\n", c.name)
		}
	}
	if failed > 0 {
		os.Exit(1)
	}
}

func run(c testCase, address string) error {
	ctx, cancel := context.WithTimeout(context.Background(), caseTimeout)
	defer cancel()
	t := &trial{address: address, name: c.name}
	defer t.close()
	return c.try(ctx, t)
}
