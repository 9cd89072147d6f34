# Images come from Docker Hub; this keeps a copy nearby, so that a new node or worker does not wait for the hub's limits.
resource "google_artifact_registry_repository" "hub" {
  repository_id = var.name
  location      = var.region
  format        = "DOCKER"
  mode          = "REMOTE_REPOSITORY"

  remote_repository_config {
    docker_repository {
      public_repository = "DOCKER_HUB"
    }
  }
  cleanup_policies {
    id     = "old"
    action = "DELETE"
    condition {
      older_than = "2592000s"
    }
  }
}

resource "google_artifact_registry_repository_iam_member" "readers" {
  for_each = var.readers

  location   = google_artifact_registry_repository.hub.location
  repository = google_artifact_registry_repository.hub.name
  role       = "roles/artifactregistry.reader"
  member     = "serviceAccount:${each.value}"
}
