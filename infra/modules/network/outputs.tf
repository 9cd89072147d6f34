output "id" {
  value = google_compute_network.this.id
}

output "nodes" {
  value = google_compute_subnetwork.nodes.id
}

output "workers" {
  value = google_compute_subnetwork.workers.id
}

output "ranges" {
  value = var.ranges
}

# Whoever needs an address in the managed range waits for the peering.
output "managed" {
  value = google_service_networking_connection.managed.network
}
