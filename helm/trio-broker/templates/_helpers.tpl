{{/* Names, labels, and what several objects share. Checks of the values: _checks.tpl; the pod: _pod.tpl. */}}

{{- define "trio-broker.name" -}}
{{ default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* 38: with `-demo-postgres` it is 52, and a StatefulSet adds 11 to its name in a label, of 63 at most. */}}
{{- define "trio-broker.fullname" -}}
{{- $name := include "trio-broker.name" . -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 38 | trimSuffix "-" }}
{{- else if contains $name .Release.Name -}}
{{ .Release.Name | trunc 38 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $name | trunc 38 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{/* Labels that never change: (list . COMPONENT). */}}
{{- define "trio-broker.selectorLabels" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: {{ include "trio-broker.name" $ }}
app.kubernetes.io/instance: {{ $.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Labels that the chart gives an object: (list . COMPONENT). */}}
{{- define "trio-broker.ownLabels" -}}
{{- $ := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $.Chart.Name $.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "trio-broker.selectorLabels" . }}
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $.Release.Service }}
{{- end }}

{{/* All labels of an object: (list . COMPONENT). */}}
{{- define "trio-broker.labels" -}}
{{ include "trio-broker.ownLabels" . }}
{{- with (index . 0).Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "trio-broker.image" -}}
{{- with .Values.image -}}
{{ with .registry }}{{ . }}/{{ end }}{{ .repository }}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ default $.Chart.AppVersion .tag }}{{ end }}
{{- end -}}
{{- end }}

{{- define "trio-broker.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "trio-broker.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end }}

{{/* "true" where the store's URL is in a Secret, the chart's own or another. */}}
{{- define "trio-broker.storeIsSecret" -}}
{{- if not .Values.store.sqlite.enabled }}true{{ end -}}
{{- end }}

{{- define "trio-broker.storeSecretName" -}}
{{ default (printf "%s-store" (include "trio-broker.fullname" .)) .Values.store.existingSecret }}
{{- end }}

{{/* Which key of that Secret is the URL. */}}
{{- define "trio-broker.storeKey" -}}
{{ ternary .Values.store.existingSecretKey "url" (not (empty .Values.store.existingSecret)) }}
{{- end }}

{{/* Which key of that Secret is the URL where to LISTEN; nothing if there is none. */}}
{{- define "trio-broker.storeListenKey" -}}
{{- if .Values.store.existingSecret -}}
{{ .Values.store.existingSecretListenKey }}
{{- else if .Values.store.listenUrl -}}
listen-url
{{- end -}}
{{- end }}

{{/* Who migrates: job, broker or none. */}}
{{- define "trio-broker.migrationsBy" -}}
{{- if or .Values.store.sqlite.enabled .Values.store.demoPostgres.enabled -}}
broker
{{- else -}}
{{ .Values.migrations.by }}
{{- end -}}
{{- end }}

{{- define "trio-broker.tlsSecretName" -}}
{{ default (printf "%s-tls" (include "trio-broker.fullname" .)) .Values.tls.existingSecret }}
{{- end }}

{{/* The address at which clients in the cluster reach the broker. */}}
{{- define "trio-broker.address" -}}
{{ include "trio-broker.fullname" . }}.{{ .Release.Namespace }}:{{ .Values.service.port }}
{{- end }}

{{/* HOST:PORT on which to listen, for a port: (list . PORT). */}}
{{- define "trio-broker.listen" -}}
{{ ternary "[::]" "0.0.0.0" (index . 0).Values.ipv6 }}:{{ index . 1 }}
{{- end }}

{{/* "true" where `helm test` can call the broker: it asks for no certificate, and the chart knows whose the broker has. */}}
{{- define "trio-broker.tested" -}}
{{- $tls := .Values.tls -}}
{{- if or (not $tls.enabled) (and $tls.certManager.enabled (not $tls.clientCA.existingSecret)) }}true{{ end -}}
{{- end }}

{{/* Ports on which brokers talk to each other, for a NetworkPolicy: one for each worker. */}}
{{- define "trio-broker.peerPorts" -}}
- port: 50052
  {{- with (.Values.config).workers }}
  endPort: {{ add 50051 (int .) }}
  {{- end }}
{{- end }}

{{/* A value of `config` as text. YAML's numbers are floats to Helm, which writes large ones with an exponent. */}}
{{- define "trio-broker.text" -}}
{{- if kindIs "slice" . -}}
{{ join " " . }}
{{- else if and (kindIs "float64" .) (eq . (floor .)) -}}
{{ int64 . }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end }}

{{/* What gateways are told of the gRPC port. */}}
{{- define "trio-broker.appProtocol" -}}
{{ default (ternary "https" "kubernetes.io/h2c" .Values.tls.enabled) .Values.service.appProtocol }}
{{- end }}

{{/* The data of the chart's own Secret with the store's URL. */}}
{{- define "trio-broker.storeSecretData" -}}
{{- if .Values.store.demoPostgres.enabled -}}
{{- $password := include "trio-broker.demoPassword" . -}}
password: {{ $password | b64enc }}
url: {{ printf "postgresql://trio_broker:%s@%s-demo-postgres/trio_broker" $password (include "trio-broker.fullname" .) | b64enc }}
{{- else -}}
url: {{ .Values.store.url | b64enc }}
{{- with .Values.store.listenUrl }}
listen-url: {{ . | b64enc }}
{{- end }}
{{- end }}
{{- end }}

{{/* The demo database's password: what is said, what there is already, or a new one. The same wherever it is asked for. */}}
{{- define "trio-broker.demoPassword" -}}
{{- $demo := .Values.store.demoPostgres -}}
{{- if not $demo.password -}}
{{- $there := lookup "v1" "Secret" .Release.Namespace (include "trio-broker.storeSecretName" .) -}}
{{- $_ := set $demo "password" (dig "data" "password" "" $there | b64dec | default (randAlphaNum 24)) -}}
{{- end -}}
{{ $demo.password }}
{{- end }}
