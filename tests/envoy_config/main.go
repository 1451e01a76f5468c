// Command envoy_config reads an Envoy configuration as Envoy does: strictly, with every rule of its messages, also of
// those inside of others as Any.
package main

import (
	"errors"
	"fmt"
	"os"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"
	"google.golang.org/protobuf/reflect/protoreflect"
	"sigs.k8s.io/yaml"
)

func main() {
	if err := check(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func check(file string) error {
	written, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	json, err := yaml.YAMLToJSONStrict(written)
	if err != nil {
		return err
	}
	var config bootstrap.Bootstrap
	if err := protojson.Unmarshal(json, &config); err != nil {
		return err
	}
	return errors.Join(config.ValidateAll(), checkAnys(&config))
}

// checkAnys applies the rules of messages in Any fields, which ValidateAll does not look into. protorange does.
func checkAnys(config proto.Message) error {
	var found error
	err := protorange.Range(config.ProtoReflect(), func(values protopath.Values) error {
		last := values.Index(-1)
		if last.Step.Kind() != protopath.AnyExpandStep {
			return nil
		}
		message := last.Value.Interface().(protoreflect.Message).Interface()
		if rules, ok := message.(interface{ ValidateAll() error }); ok {
			found = errors.Join(found, rules.ValidateAll())
		}
		return nil
	})
	return errors.Join(found, err)
}
