# One private network: nothing in it has a public address, what it asks of the world goes through NAT.

resource "google_compute_network" "this" {
  name                    = var.name
  auto_create_subnetworks = false
}

resource "google_compute_subnetwork" "nodes" {
  name                     = "${var.name}-nodes"
  network                  = google_compute_network.this.id
  region                   = var.region
  ip_cidr_range            = var.ranges.nodes
  private_ip_google_access = true

  secondary_ip_range {
    range_name    = "pods"
    ip_cidr_range = var.ranges.pods
  }
  secondary_ip_range {
    range_name    = "services"
    ip_cidr_range = var.ranges.services
  }
  log_config {
    aggregation_interval = "INTERVAL_10_MIN"
    flow_sampling        = 0.1
  }
}

resource "google_compute_subnetwork" "workers" {
  name                     = "${var.name}-workers"
  network                  = google_compute_network.this.id
  region                   = var.region
  ip_cidr_range            = var.ranges.workers
  private_ip_google_access = true

  log_config {
    aggregation_interval = "INTERVAL_10_MIN"
    flow_sampling        = 0.1
  }
}

resource "google_compute_router" "this" {
  name    = var.name
  network = google_compute_network.this.id
  region  = var.region
}

resource "google_compute_router_nat" "this" {
  name                               = var.name
  router                             = google_compute_router.this.name
  region                             = var.region
  nat_ip_allocate_option             = "AUTO_ONLY"
  source_subnetwork_ip_ranges_to_nat = "ALL_SUBNETWORKS_ALL_IP_RANGES"

  log_config {
    enable = true
    filter = "ERRORS_ONLY"
  }
}

# Where Memorystore puts its addresses.
resource "google_compute_global_address" "managed" {
  name          = "${var.name}-managed"
  network       = google_compute_network.this.id
  purpose       = "VPC_PEERING"
  address_type  = "INTERNAL"
  address       = split("/", var.ranges.managed)[0]
  prefix_length = tonumber(split("/", var.ranges.managed)[1])
}

resource "google_service_networking_connection" "managed" {
  network                 = google_compute_network.this.id
  service                 = "servicenetworking.googleapis.com"
  reserved_peering_ranges = [google_compute_global_address.managed.name]
}

# ---- Who may talk to the workers. All else that comes in is refused by the network's own last rule.

resource "google_compute_firewall" "ssh" {
  name          = "${var.name}-ssh"
  network       = google_compute_network.this.id
  description   = "Deployments: through Identity-Aware Proxy, or from named private networks."
  direction     = "INGRESS"
  source_ranges = concat(["35.235.240.0/20"], var.ssh_ranges)
  target_tags   = ["darkroom-worker"]

  allow {
    protocol = "tcp"
    ports    = ["22"]
  }
}

resource "google_compute_firewall" "metrics" {
  name          = "${var.name}-metrics"
  network       = google_compute_network.this.id
  description   = "Prometheus in the cluster: worker, node-exporter, DCGM."
  direction     = "INGRESS"
  source_ranges = [var.ranges.pods]
  target_tags   = ["darkroom-worker"]

  allow {
    protocol = "tcp"
    ports    = [for port in var.metrics_ports : tostring(port)]
  }
}

resource "google_compute_firewall" "health" {
  name          = "${var.name}-health"
  network       = google_compute_network.this.id
  description   = "Google's health checks, which heal the group."
  direction     = "INGRESS"
  source_ranges = ["130.211.0.0/22", "35.191.0.0/16"]
  target_tags   = ["darkroom-worker"]

  allow {
    protocol = "tcp"
    ports    = [tostring(var.health_port)]
  }
}
