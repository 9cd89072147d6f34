# The public name, and in the private network the broker's. Certificates are cert-manager's, in the cluster, whose account
# proves in the public zone, and there alone, that the name is ours.

resource "google_compute_address" "ingress" {
  name   = "${var.name}-ingress"
  region = var.region
}

resource "google_compute_address" "broker" {
  name         = "${var.name}-broker"
  region       = var.region
  address_type = "INTERNAL"
  purpose      = "SHARED_LOADBALANCER_VIP"
  subnetwork   = var.subnetwork
}

resource "google_dns_managed_zone" "public" {
  name     = "${var.name}-public"
  dns_name = "${var.domain}."

  dnssec_config {
    state = "on"
  }
}

resource "google_dns_record_set" "web" {
  managed_zone = google_dns_managed_zone.public.name
  name         = "${var.host}."
  type         = "A"
  ttl          = 300
  rrdatas      = [google_compute_address.ingress.address]
}

resource "google_service_account" "certificates" {
  account_id   = "${var.name}-certificates"
  display_name = "Darkroom's cert-manager"
}

resource "google_service_account_iam_member" "certificates" {
  service_account_id = google_service_account.certificates.name
  role               = "roles/iam.workloadIdentityUser"
  member             = "serviceAccount:${var.workload_pool}[cert-manager/cert-manager]"
}

resource "google_dns_managed_zone_iam_member" "certificates" {
  managed_zone = google_dns_managed_zone.public.name
  role         = "roles/dns.admin"
  member       = google_service_account.certificates.member
}

resource "google_dns_managed_zone" "private" {
  name       = "${var.name}-private"
  dns_name   = "darkroom.internal."
  visibility = "private"

  private_visibility_config {
    networks {
      network_url = var.network
    }
  }
}

resource "google_dns_record_set" "broker" {
  managed_zone = google_dns_managed_zone.private.name
  name         = "broker.darkroom.internal."
  type         = "A"
  ttl          = 300
  rrdatas      = [google_compute_address.broker.address]
}
