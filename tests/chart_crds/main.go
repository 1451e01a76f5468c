// Read objects of other people's kinds as their own programs read them: what they would ignore or refuse fails.
//
//	chart_crds FILE...
//
// Files of one or more YAML documents. Kinds that are Kubernetes' own are left out.
package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"
)

var kinds = map[string]func() any{
	"cert-manager.io/v1/Certificate":          func() any { return &certmanager.Certificate{} },
	"gateway.networking.k8s.io/v1/GRPCRoute":  func() any { return &gateway.GRPCRoute{} },
	"monitoring.coreos.com/v1/ServiceMonitor": func() any { return &monitoring.ServiceMonitor{} },
	"monitoring.coreos.com/v1/PrometheusRule": func() any { return &monitoring.PrometheusRule{} },
}

func main() {
	for _, path := range os.Args[1:] {
		content, err := os.ReadFile(path)
		if err == nil {
			err = check(content)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
			os.Exit(1)
		}
	}
}

func check(content []byte) error {
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var about struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
		}
		if err := yaml.Unmarshal(document, &about); err != nil {
			return err
		}
		kind := about.APIVersion + "/" + about.Kind
		made, known := kinds[kind]
		if !known {
			continue
		}
		if err := yaml.UnmarshalStrict(document, made()); err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
		fmt.Println(kind)
	}
}
