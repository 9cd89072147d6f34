{{- define "darkroom.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Labels that select: dict "root" $ "component" "web" */}}
{{- define "darkroom.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "darkroom.labels" -}}
{{ include "darkroom.selector" . }}
app.kubernetes.io/version: {{ include "darkroom.tag" .root | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: darkroom
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "darkroom.tag" -}}
{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* dict "root" $ "image" "web" */}}
{{- define "darkroom.image" -}}
{{ .root.Values.image.registry }}/darkroom-{{ .image }}:{{ include "darkroom.tag" .root }}
{{- end }}

{{- define "darkroom.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "darkroom.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* dict "root" $ "component" "web" "by" "kubernetes.io/hostname" */}}
{{- define "darkroom.spread" -}}
topologySpreadConstraints:
  {{- $selector := include "darkroom.selector" . }}
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{ $selector | nindent 8 }}
  {{- end }}
{{- end }}

{{/* The numeric user of an image: 10001 ours, 999 RabbitMQ's and Redis', others as they say. */}}
{{- define "darkroom.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "darkroom.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "darkroom.rabbitmq.host" -}}
{{ include "darkroom.fullname" . }}-rabbitmq.{{ .Release.Namespace }}.svc
{{- end }}

{{- define "darkroom.redis.host" -}}
{{ include "darkroom.fullname" . }}-redis.{{ .Release.Namespace }}.svc
{{- end }}

{{- define "darkroom.rabbitmq.port" -}}
{{ if .Values.tls.enabled }}5671{{ else }}5672{{ end }}
{{- end }}

{{- define "darkroom.brokerUrl" -}}
{{- if .Values.rabbitmq.enabled }}
- name: BROKER_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ .Values.rabbitmq.secret }}, key: password}}
- name: BROKER_URL
  value: {{ if .Values.tls.enabled }}amqps{{ else }}amqp{{ end }}://darkroom:$(BROKER_PASSWORD)@{{ include "darkroom.rabbitmq.host" . }}:{{ include "darkroom.rabbitmq.port" . }}//
{{- else }}
- name: BROKER_URL
  valueFrom: {secretKeyRef: {name: {{ required "name the Secret that holds the broker's address (rabbitmq.external.secret)" .Values.rabbitmq.external.secret }}, key: url}}
{{- end }}
{{- end }}

{{/* What web, courier and worker have in common: addresses with their secrets, which no ConfigMap may hold. */}}
{{- define "darkroom.env" -}}
{{ include "darkroom.brokerUrl" . }}
{{- if .Values.redis.enabled }}
- name: REDIS_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ .Values.redis.secret }}, key: password}}
- name: REDIS_URL
  value: {{ if .Values.tls.enabled }}rediss{{ else }}redis{{ end }}://:$(REDIS_PASSWORD)@{{ include "darkroom.redis.host" . }}:6379/0
{{- else }}
- name: REDIS_URL
  valueFrom: {secretKeyRef: {name: {{ required "name the Secret that holds Redis' address (redis.external.secret)" .Values.redis.external.secret }}, key: url}}
{{- end }}
{{- if and (hasPrefix "file://" .Values.storage.url) (not .Values.storage.signingSecret) }}
{{- fail "name the Secret of the key that signs the links to a volume's pictures (storage.signingSecret)" }}
{{- end }}
{{- with .Values.storage.signingSecret }}
- name: SIGNING_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: signing-key}}
{{- end }}
{{- with .Values.webhooks.secret }}
- name: WEBHOOK_SECRET
  valueFrom: {secretKeyRef: {name: {{ . }}, key: secret}}
{{- end }}
{{- end }}

{{- define "darkroom.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .Values.tls.caSecret }}
- {name: ca, mountPath: /etc/darkroom/ca, readOnly: true}
{{- end }}
{{- if .Values.catalogue }}
- {name: catalogue, mountPath: /etc/darkroom/catalogue, readOnly: true}
{{- end }}
{{- if hasPrefix "file://" .Values.storage.url }}
- {name: pictures, mountPath: {{ trimPrefix "file://" .Values.storage.url }}}
{{- end }}
{{- end }}

{{- define "darkroom.volumes" -}}
- {name: tmp, emptyDir: {sizeLimit: 1Gi}}
{{- with .Values.tls.caSecret }}
- name: ca
  secret: {secretName: {{ . }}, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}
{{- if .Values.catalogue }}
- {name: catalogue, configMap: {name: {{ include "darkroom.fullname" . }}-catalogue}}
{{- end }}
{{- if hasPrefix "file://" .Values.storage.url }}
- {name: pictures, persistentVolumeClaim: {claimName: {{ include "darkroom.fullname" . }}-pictures}}
{{- end }}
{{- end }}

{{/* A new ConfigMap restarts the pods that read it. */}}
{{- define "darkroom.checksum" -}}
checksum/settings: {{ include (print $.Template.BasePath "/settings.yaml") . | sha256sum }}
{{- end }}

{{/* Prometheus finds what it scrapes by these: dict "port" 9090 */}}
{{- define "darkroom.scraped" -}}
prometheus.io/scrape: "true"
prometheus.io/port: {{ .port | quote }}
prometheus.io/path: /metrics
{{- end }}

{{/* A sign of life (ALIVE_FILE) that is younger than half a minute; no Redis, no broker in it. */}}
{{- define "darkroom.alive" -}}
exec:
  command: [sh, -c, 'test -n "$(find /tmp/alive -newermt "-30 seconds")"']
{{- end }}
