{{/* The pod of a broker, the same in a Deployment and a StatefulSet; and what it shares with the migration Job. */}}

{{/* Where the store is, as variables. */}}
{{- define "trio-broker.storeEnv" -}}
{{- if .Values.store.sqlite.enabled -}}
- name: TRIO_BROKER_STORE
  value: sqlite:////data/trio-broker.db
{{- else -}}
- name: TRIO_BROKER_STORE_FILE
  value: /run/secrets/trio-broker/{{ include "trio-broker.storeKey" . }}
{{- end }}
{{- end }}

{{- define "trio-broker.commonPod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "trio-broker.podTemplate" -}}
metadata:
  annotations:
    kubectl.kubernetes.io/default-container: broker
    {{- if or .Values.store.url .Values.store.demoPostgres.enabled }}
    checksum/store: {{ include "trio-broker.storeSecretData" . | sha256sum }}
    {{- end }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  labels:
    {{- include "trio-broker.labels" (list . "broker") | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "trio-broker.commonPod" . | nindent 2 }}
  serviceAccountName: {{ include "trio-broker.serviceAccountName" . }}
  # shutdown.preStopSeconds, drainDelaySeconds and graceSeconds, and 5 s
  terminationGracePeriodSeconds: {{ add .Values.shutdown.preStopSeconds .Values.shutdown.drainDelaySeconds .Values.shutdown.graceSeconds 5 }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- range . }}
    - {{- toYaml . | nindent 6 }}
      {{- if not .labelSelector }}
      labelSelector:
        matchLabels:
          {{- include "trio-broker.selectorLabels" (list $ "broker") | nindent 10 }}
      {{- end }}
    {{- end }}
  {{- end }}
  {{- with .Values.initContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: broker
      image: {{ include "trio-broker.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        - serve
        {{- if not .Values.tls.clientCA.existingSecret }}
        - --allow-anonymous
        {{- end }}
      env:
        {{- include "trio-broker.storeEnv" . | nindent 8 }}
        {{- with include "trio-broker.storeListenKey" . }}
        - name: TRIO_BROKER_STORE_LISTEN_FILE
          value: /run/secrets/trio-broker/{{ . }}
        {{- end }}
        {{- if ne (include "trio-broker.migrationsBy" .) "broker" }}
        - name: TRIO_BROKER_NO_MIGRATE
          value: "true"
        {{- end }}
        - name: TRIO_BROKER_LISTEN
          value: {{ include "trio-broker.listen" (list . 50051) | quote }}
        - name: TRIO_BROKER_METRICS_LISTEN
          value: {{ include "trio-broker.listen" (list . 9464) | quote }}
        {{- if not .Values.store.sqlite.enabled }}
        - name: POD_IP
          valueFrom:
            fieldRef:
              fieldPath: status.podIP
        - name: TRIO_BROKER_PEER_LISTEN
          value: {{ include "trio-broker.listen" (list . 50052) | quote }}
        - name: TRIO_BROKER_ADVERTISE
          value: {{ ternary "[$(POD_IP)]:50052" "$(POD_IP):50052" .Values.ipv6 | quote }}
        {{- end }}
        {{- if .Values.tls.enabled }}
        - name: TRIO_BROKER_TLS_CERT
          value: /run/secrets/trio-broker-tls/tls.crt
        - name: TRIO_BROKER_TLS_KEY
          value: /run/secrets/trio-broker-tls/tls.key
        {{- if .Values.tls.clientCA.existingSecret }}
        - name: TRIO_BROKER_TLS_CLIENT_CA
          value: /run/secrets/trio-broker-client-ca/{{ .Values.tls.clientCA.key }}
        {{- end }}
        {{- end }}
        - name: TRIO_BROKER_DRAIN_DELAY
          value: {{ printf "%ds" (int .Values.shutdown.drainDelaySeconds) }}
        - name: TRIO_BROKER_GRACE
          value: {{ printf "%ds" (int .Values.shutdown.graceSeconds) }}
        {{- range $name, $value := .Values.config }}
        - name: TRIO_BROKER_{{ upper $name }}
          value: {{ include "trio-broker.text" $value | quote }}
        {{- end }}
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with .Values.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: grpc
          containerPort: 50051
        - name: metrics
          containerPort: 9464
        {{- if not .Values.store.sqlite.enabled }}
        - name: peers
          containerPort: 50052
        {{- end }}
      startupProbe:
        httpGet:
          path: /healthz
          port: metrics
        {{- toYaml .Values.probes.startup | nindent 8 }}
      livenessProbe:
        httpGet:
          path: /healthz
          port: metrics
        {{- toYaml .Values.probes.liveness | nindent 8 }}
      readinessProbe:
        httpGet:
          path: /readyz
          port: metrics
        {{- toYaml .Values.probes.readiness | nindent 8 }}
      {{- if .Values.shutdown.preStopSeconds }}
      lifecycle:
        preStop:
          exec:
            command: [sleep, {{ .Values.shutdown.preStopSeconds | toString | quote }}]
      {{- end }}
      securityContext:
        {{- toYaml .Values.containerSecurityContext | nindent 8 }}
      {{- with .Values.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        - name: tmp
          mountPath: /tmp
        - name: data
          mountPath: /data
        {{- if not .Values.store.sqlite.enabled }}
        - name: store
          mountPath: /run/secrets/trio-broker
          readOnly: true
        {{- end }}
        {{- if .Values.tls.enabled }}
        - name: tls
          mountPath: /run/secrets/trio-broker-tls
          readOnly: true
        {{- if .Values.tls.clientCA.existingSecret }}
        - name: client-ca
          mountPath: /run/secrets/trio-broker-client-ca
          readOnly: true
        {{- end }}
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with .Values.sidecars }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    - name: tmp
      emptyDir:
        sizeLimit: 16Mi
    {{- if not .Values.store.sqlite.enabled }}
    # nothing is written there; without it the runtime makes a volume, for the image asks for one
    - name: data
      emptyDir:
        sizeLimit: 1Mi
    - name: store
      secret:
        secretName: {{ include "trio-broker.storeSecretName" . }}
        defaultMode: 0440
    {{- end }}
    {{- if .Values.tls.enabled }}
    - name: tls
      secret:
        secretName: {{ include "trio-broker.tlsSecretName" . }}
        defaultMode: 0440
    {{- with .Values.tls.clientCA.existingSecret }}
    - name: client-ca
      secret:
        secretName: {{ . }}
        defaultMode: 0440
    {{- end }}
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
