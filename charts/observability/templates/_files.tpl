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

{{/* What such a ConfigMap holds: dict "root" $ "name" "logs" */}}
{{- define "observability.files" -}}
{{- $root := .root }}
{{- $data := dict }}
{{- range $path, $_ := $root.Files.Glob (index (include "observability.maps" . | fromYaml) .name) }}
{{- $_ := set $data (base $path) ($root.Files.Get $path) }}
{{- end }}
{{- if not $data }}{{ fail (print "no file is in the ConfigMap " .name) }}{{ end }}
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
