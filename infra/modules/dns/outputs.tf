output "ingress_address" {
  value = google_compute_address.ingress.address
}

output "broker_address" {
  value = google_compute_address.broker.address
}

output "certificates_account" {
  description = "E-mail of the account that cert-manager is."
  value       = google_service_account.certificates.email
}

output "name_servers" {
  description = "What the domain's registrar must name."
  value       = google_dns_managed_zone.public.name_servers
}
