{{/* What values.schema.json cannot say: values that do not go together. The first that is wrong ends it, in one line. */}}
{{- define "trio-broker.check" -}}
{{- $store := .Values.store -}}
{{- $places := list -}}
{{- if $store.url }}{{ $places = append $places "store.url" }}{{ end -}}
{{- if $store.existingSecret }}{{ $places = append $places "store.existingSecret" }}{{ end -}}
{{- if $store.sqlite.enabled }}{{ $places = append $places "store.sqlite.enabled" }}{{ end -}}
{{- if $store.demoPostgres.enabled }}{{ $places = append $places "store.demoPostgres.enabled" }}{{ end -}}
{{- if not $places -}}
{{- fail "Where are messages to be kept? Set store.url (postgresql://.. or cassandra://..), store.existingSecret (a Secret that has it), or, to try the chart, store.demoPostgres.enabled=true" -}}
{{- end -}}
{{- if gt (len $places) 1 -}}
{{- fail (printf "Messages are kept in one place, and %s name several: leave all but one out" (join " and " $places)) -}}
{{- end -}}
{{- if hasPrefix "sqlite:" $store.url -}}
{{- fail "store.url is for databases that brokers share. For SQLite set store.sqlite.enabled=true and replicaCount=1 instead" -}}
{{- end -}}
{{- if regexMatch "\\s" $store.url -}}
{{- fail "store.url has a space or a line end: write %20 for a space in a password" -}}
{{- end -}}
{{- if and $store.url (not (regexMatch "^(postgresql|postgres|cassandra)://" $store.url)) -}}
{{- fail (printf "store.url begins with %q; write postgresql://user:password@host/database or cassandra://host1,host2/keyspace" (regexFind "^[A-Za-z0-9+.-]*" $store.url)) -}}
{{- end -}}
{{- if and $store.url (not (regexMatch "^(postgres(ql)?://.+|cassandra://[^/]+/.+)$" $store.url)) -}}
{{- fail "store.url names no database: write postgresql://user:password@host/database or cassandra://host1,host2/keyspace" -}}
{{- end -}}
{{- if and $store.listenUrl (not (regexMatch "^postgres(ql)?://" $store.url)) -}}
{{- fail "store.listenUrl goes with a store.url of PostgreSQL. With store.existingSecret set store.existingSecretListenKey instead" -}}
{{- end -}}
{{- if and $store.listenUrl (not (regexMatch "^postgres(ql)?://" $store.listenUrl)) -}}
{{- fail "store.listenUrl has to begin with postgresql://" -}}
{{- end -}}
{{- if and $store.existingSecretListenKey (not $store.existingSecret) -}}
{{- fail "store.existingSecretListenKey names a key of store.existingSecret, which is not set" -}}
{{- end -}}
{{- if $store.sqlite.enabled -}}
{{- if .Values.autoscaling.enabled -}}
{{- fail "SQLite is for one broker: set autoscaling.enabled=false, or use PostgreSQL or Cassandra (store.url)" -}}
{{- end -}}
{{- if gt (int .Values.replicaCount) 1 -}}
{{- fail (printf "SQLite is for one broker, and replicaCount is %d: set replicaCount=1, or use PostgreSQL or Cassandra (store.url)" (int .Values.replicaCount)) -}}
{{- end -}}
{{- if gt (int (default 1 (.Values.config).workers)) 1 -}}
{{- fail "SQLite is for one process: leave config.workers out, or use PostgreSQL or Cassandra (store.url)" -}}
{{- end -}}
{{- end -}}
{{- $tls := .Values.tls -}}
{{- if $tls.enabled -}}
{{- if and $tls.existingSecret $tls.certManager.enabled -}}
{{- fail "The certificate is of tls.existingSecret or of tls.certManager: leave one of them out" -}}
{{- end -}}
{{- if not (or $tls.existingSecret $tls.certManager.enabled) -}}
{{- fail "TLS needs a certificate and its key: set tls.existingSecret (a Secret with tls.crt and tls.key) or tls.certManager.enabled=true" -}}
{{- end -}}
{{- if and $tls.certManager.enabled (not $tls.certManager.issuerRef.name) -}}
{{- fail "tls.certManager needs an issuer: set tls.certManager.issuerRef.name, and .kind if it is a ClusterIssuer" -}}
{{- end -}}
{{- else if or $tls.existingSecret $tls.certManager.enabled $tls.clientCA.existingSecret -}}
{{- fail "tls.existingSecret, tls.certManager and tls.clientCA do nothing without TLS: set tls.enabled=true" -}}
{{- end -}}
{{- if .Values.autoscaling.enabled -}}
{{- if lt (int .Values.autoscaling.maxReplicas) (int .Values.autoscaling.minReplicas) -}}
{{- fail (printf "autoscaling.maxReplicas (%d) is less than autoscaling.minReplicas (%d)" (int .Values.autoscaling.maxReplicas) (int .Values.autoscaling.minReplicas)) -}}
{{- end -}}
{{- if not (dig "requests" "cpu" "" .Values.resources) -}}
{{- fail "autoscaling goes by the CPU that is requested: set resources.requests.cpu" -}}
{{- end -}}
{{- end -}}
{{- if eq .Values.service.type "ClusterIP" -}}
{{- if or .Values.service.nodePort .Values.service.externalTrafficPolicy -}}
{{- fail "service.nodePort and service.externalTrafficPolicy are for what comes from outside: set service.type=NodePort or LoadBalancer" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.service.loadBalancerSourceRanges (ne .Values.service.type "LoadBalancer") -}}
{{- fail "service.loadBalancerSourceRanges needs service.type=LoadBalancer" -}}
{{- end -}}
{{- $rolling := .Values.updateStrategy.rollingUpdate | default dict -}}
{{- if and (eq .Values.updateStrategy.type "RollingUpdate") (regexMatch "^0%?$" (toString (get $rolling "maxSurge"))) (regexMatch "^0%?$" (toString (get $rolling "maxUnavailable"))) -}}
{{- fail "No pod could be replaced: updateStrategy.rollingUpdate has maxSurge 0 and maxUnavailable 0; set one of them to 1" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.enabled needs ingress.hosts" -}}
{{- end -}}
{{- if and .Values.grpcRoute.enabled (not .Values.grpcRoute.parentRefs) -}}
{{- fail "grpcRoute.enabled needs grpcRoute.parentRefs: which gateway is it for?" -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if hasPrefix "TRIO_BROKER_" .name -}}
{{- fail (printf "%s is a setting: write it under config, in lower case and without TRIO_BROKER_" .name) -}}
{{- end -}}
{{- end -}}
{{- $own := keys (include "trio-broker.ownLabels" (list . "broker") | fromYaml) -}}
{{- range $key, $_ := .Values.commonLabels -}}
{{- if has $key $own }}{{ fail (printf "commonLabels has %s, which the chart sets itself: leave it out" $key) }}{{ end -}}
{{- end -}}
{{- range $place, $labels := dict "podLabels" .Values.podLabels "serviceMonitor.labels" .Values.serviceMonitor.labels "prometheusRule.labels" .Values.prometheusRule.labels "dashboards.labels" .Values.dashboards.labels -}}
{{- range $key, $_ := $labels -}}
{{- if has $key $own }}{{ fail (printf "%s has %s, which the chart sets itself: leave it out" $place $key) }}{{ end -}}
{{- if hasKey ($.Values.commonLabels | default dict) $key }}{{ fail (printf "%s and commonLabels both have %s: leave it out of one of them" $place $key) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $name := include "trio-broker.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "Objects would be called %q, and a Service's name has a-z, 0-9 and - alone and begins with a letter: set fullnameOverride to such a name" $name) -}}
{{- end -}}
{{- end }}
