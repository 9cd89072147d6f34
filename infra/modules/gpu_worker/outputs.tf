output "group" {
  description = "For infra/ci/deploy-worker."
  value       = google_compute_region_instance_group_manager.this.name
}

output "metrics_ports" {
  value = concat([for gpu in range(var.gpus) : 9464 + gpu], [9100, 9400])
}

output "health_port" {
  description = "Where Google's health checks ask."
  value       = google_compute_health_check.this.http_health_check[0].port
}
