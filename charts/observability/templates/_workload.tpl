{{- define "observability.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .name }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "observability.labels" -}}
{{ include "observability.selector" . }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: darkroom
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "observability.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/*
One component: its pods and, where others ask it, the Service with its name. The files beside this chart name the
Services, so they have no prefix: one release a namespace.
dict "root" $ "name" "grafana" "of" .Values.grafana "spec" YAML, in which stand
  kind        Deployment (if none), StatefulSet with storage at `data`, or DaemonSet
  user        numeric
  ports       name to number; the first is asked for `health`
  health      path; none: the port must answer
  scraped     port that Prometheus asks
  container   what else the container has: args, env, volumeMounts
  pod         what else the pod has: volumes, serviceAccountName
*/}}
{{- define "observability.workload" -}}
{{- $c := .spec | fromYaml }}
{{- if hasKey $c "Error" }}{{ fail (print .name ": " $c.Error) }}{{ end }}
{{- $kind := $c.kind | default "Deployment" }}
{{- $labels := include "observability.labels" . }}
{{- $selector := include "observability.selector" . }}
---
apiVersion: apps/v1
kind: {{ $kind }}
metadata:
  name: {{ .name }}
  labels: {{ $labels | nindent 4 }}
spec:
  {{- if ne $kind "DaemonSet" }}
  replicas: 1
  {{- end }}
  {{- if eq $kind "StatefulSet" }}
  serviceName: {{ .name }}
  {{- end }}
  selector:
    matchLabels: {{ $selector | nindent 6 }}
  template:
    metadata:
      labels: {{ $labels | nindent 8 }}
      {{- $files := include "observability.checksum" (dict "root" .root "volumes" ($c.pod | default dict).volumes) }}
      {{- if or $files $c.scraped }}
      annotations:
        {{- with $files }}
        # New files are read by new pods.
        checksum/files: {{ . }}
        {{- end }}
        {{- with $c.scraped }}
        prometheus.io/scrape: "true"
        prometheus.io/port: {{ . | quote }}
        prometheus.io/path: /metrics
        {{- end }}
      {{- end }}
    spec:
      enableServiceLinks: false
      automountServiceAccountToken: {{ hasKey ($c.pod | default dict) "serviceAccountName" }}
      securityContext:
        runAsNonRoot: {{ ne (int $c.user) 0 }}
        runAsUser: {{ $c.user }}
        runAsGroup: {{ $c.user }}
        fsGroup: {{ $c.user }}
        seccompProfile: {type: RuntimeDefault}
      {{- with omit ($c.pod | default dict) "volumes" }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
      containers:
        - name: {{ .name }}
          image: {{ .of.image }}
          securityContext: {{ include "observability.containerSecurity" . | nindent 12 }}
          resources: {{ toYaml .of.resources | nindent 12 }}
          ports:
            {{- range $name, $port := $c.ports }}
            - {name: {{ $name }}, containerPort: {{ $port }}}
            {{- end }}
          livenessProbe:
            {{- include "observability.probe" $c | nindent 12 }}
            initialDelaySeconds: 30
            periodSeconds: 30
            timeoutSeconds: 10
            failureThreshold: 10
          readinessProbe:
            {{- include "observability.probe" $c | nindent 12 }}
            timeoutSeconds: 10
          {{- toYaml $c.container | nindent 10 }}
      volumes:
        - {name: tmp, emptyDir: {sizeLimit: 256Mi}}
        {{- with ($c.pod | default dict).volumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  {{- if eq $kind "StatefulSet" }}
  volumeClaimTemplates:
    - metadata: {name: data}
      spec:
        accessModes: [ReadWriteOnce]
        {{- with .of.storage.storageClass }}
        storageClassName: {{ . }}
        {{- end }}
        resources: {requests: {storage: {{ .of.storage.size }}}}
  {{- end }}
{{- if not $c.unasked }}
---
apiVersion: v1
kind: Service
metadata:
  name: {{ .name }}
  labels: {{ $labels | nindent 4 }}
spec:
  selector: {{ $selector | nindent 4 }}
  {{- if eq $kind "DaemonSet" }}
  # The one on the asker's own node.
  internalTrafficPolicy: Local
  {{- end }}
  ports:
    {{- range $name, $port := $c.ports }}
    - {name: {{ $name }}, port: {{ $port }}, targetPort: {{ $name }}}
    {{- end }}
{{- end }}
{{- end }}

{{- define "observability.probe" -}}
{{- $first := keys .ports | sortAlpha | first }}
{{- if .health }}
httpGet: {path: {{ .health }}, port: {{ .probed | default $first }}}
{{- else }}
tcpSocket: {port: {{ .probed | default $first }}}
{{- end }}
{{- end }}
