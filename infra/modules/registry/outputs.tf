output "host" {
  description = "What stands before an image's name instead of docker.io."
  value       = google_artifact_registry_repository.hub.registry_uri
}
