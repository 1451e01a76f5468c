package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"
	reflection "google.golang.org/grpc/reflection/grpc_reflection_v1"
)

// What is served besides the broker's own calls.

func healthAndReflection(ctx context.Context, t *trial) error {
	c, err := t.client()
	if err != nil {
		return err
	}
	for _, service := range []string{"", "broker.Broker"} {
		response, err := grpc_health_v1.NewHealthClient(c.connection).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
		if err != nil {
			return err
		}
		if response.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
			return fmt.Errorf("health of %q is %v", service, response.GetStatus())
		}
	}
	stream, err := reflection.NewServerReflectionClient(c.connection).ServerReflectionInfo(ctx)
	if err != nil {
		return err
	}
	list := &reflection.ServerReflectionRequest_ListServices{}
	if err := stream.Send(&reflection.ServerReflectionRequest{MessageRequest: list}); err != nil {
		return err
	}
	response, err := stream.Recv()
	if err != nil {
		return err
	}
	services := response.GetListServicesResponse().GetService()
	isBroker := func(s *reflection.ServiceResponse) bool { return s.GetName() == "broker.Broker" }
	if !slices.ContainsFunc(services, isBroker) {
		return fmt.Errorf("reflection lists %v", services)
	}
	return nil
}

// noSubscriberLeft waits until active_subscribers is 0: the broker learns of departures a moment after they happen.
func noSubscriberLeft(ctx context.Context, metrics string) error {
	for {
		value, err := activeSubscribers(ctx, metrics)
		if err != nil || value == "0" || value == "0.0" {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("active_subscribers is %s", value)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func activeSubscribers(ctx context.Context, metrics string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metrics+"/metrics", nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		if value, found := strings.CutPrefix(lines.Text(), "active_subscribers "); found {
			return value, nil
		}
	}
	return "", fmt.Errorf("no active_subscribers on the page (%s)", response.Status)
}
