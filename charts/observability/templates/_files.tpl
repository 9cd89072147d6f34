{{/* The ConfigMaps that hold files of this chart as they are, and which. */}}
{{- define "observability.maps" -}}
prometheus: files/prometheus/*.yml
prometheus-rules: files/prometheus/rules/*
alertmanager: files/alertmanager/*.yml
alertmanager-templates: files/alertmanager/templates/*
grafana-datasources: files/grafana/provisioning/datasources.yml
grafana-providers: files/grafana/provisioning/dashboards.yml
grafana-dashboards: files/grafana/dashboards/*
collector: files/traces/*
logs: files/logs/*
{{- end }}

{{/* The end of prometheus.yml where Google tells which GPU machines there are: they come and go with the jobs that wait. */}}
{{- define "observability.gce" }}
  - job_name: gce
    gce_sd_configs:
      {{- range $zone := .zones }}
      {{- range $port := $.ports }}
      - project: {{ $.project }}
        zone: {{ $zone }}
        port: {{ $port }}
        filter: (labels.role = "darkroom-worker") AND (status = "RUNNING")
      {{- end }}
      {{- end }}
    relabel_configs:
      # A worker for each GPU, from 9464 on.
      {{- range $role, $ports := dict "worker" "94(6[4-9]|7[01])" "node" "9100" "gpu" "9400" }}
      - source_labels: [__address__]
        regex: .+:{{ $ports }}
        target_label: job
        replacement: {{ $role }}
      {{- end }}
      # By the machine's name, since the next one may have its address.
      - source_labels: [__meta_gce_instance_name, __address__]
        separator: "@"
        regex: (.+)@.+:(\d+)
        target_label: instance
        replacement: $1:$2
{{- end }}

{{/* What such a ConfigMap holds: dict "root" $ "name" "logs" */}}
{{- define "observability.files" -}}
{{- $root := .root }}
{{- $data := dict }}
{{- range $path, $_ := $root.Files.Glob (index (include "observability.maps" . | fromYaml) .name) }}
{{- $_ := set $data (base $path) ($root.Files.Get $path) }}
{{- end }}
{{- if not $data }}{{ fail (print "no file is in the ConfigMap " .name) }}{{ end }}
{{- $gce := $root.Values.prometheus.gce }}
{{- if and (eq .name "prometheus") $gce.project }}
{{- $_ := set $data "prometheus.yml" (print (index $data "prometheus.yml") (include "observability.gce" $gce) "\n") }}
{{- end }}
{{- toYaml $data }}
{{- end }}

{{/*
A hash of the files that a pod reads at its start: dict "root" $ "volumes" LIST; nothing where there are none.
Prometheus' targets are not among them: it reads these again whenever they change.
*/}}
{{- define "observability.checksum" -}}
{{- $root := .root }}
{{- $maps := include "observability.maps" . | fromYaml }}
{{- $read := list }}
{{- range $volume := .volumes }}
{{- range concat (list $volume) (dig "projected" "sources" list $volume) }}
{{- $name := dig "configMap" "name" "" . }}
{{- if hasKey $maps $name }}{{ $read = append $read (include "observability.files" (dict "root" $root "name" $name)) }}{{ end }}
{{- end }}
{{- end }}
{{- with $read }}{{ toJson . | sha256sum }}{{ end }}
{{- end }}
