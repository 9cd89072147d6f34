output "name" {
  value = google_container_cluster.this.name
}

output "workload_pool" {
  description = "Of the pods' accounts; there once the cluster is."
  value       = "${var.project}.svc.id.goog"
  depends_on  = [google_container_cluster.this]
}
