{{- define "corrente.operator" -}}
{{- printf "%s-operator" (.Release.Name | trunc 54 | trimSuffix "-") -}}
{{- end -}}

{{- define "corrente.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "corrente.operator" .) -}}
{{- end -}}

{{- define "corrente.selector" -}}
app.kubernetes.io/name: corrente-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "corrente.labels" -}}
{{ include "corrente.selector" . }}
app.kubernetes.io/part-of: corrente
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end -}}

{{- /* The image of a component: list CHART-CONTEXT IMAGE-VALUES */ -}}
{{- define "corrente.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- printf "%s:%s" $image.repository ($image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}
