{{- define "overlay.labels" -}}
app.kubernetes.io/name: overlay
app.kubernetes.io/part-of: overlay
{{- end }}

{{- define "overlay.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* No privilege beyond what is added to it. */}}
{{- define "overlay.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsUser: 0
{{- end }}
