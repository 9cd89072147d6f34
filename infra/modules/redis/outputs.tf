output "url" {
  description = "REDIS_URL."
  value       = "rediss://:${google_redis_instance.this.auth_string}@${google_redis_instance.this.host}:${google_redis_instance.this.port}/0"
  sensitive   = true
}

output "ca" {
  description = "CA_FILE's content for this store, PEM."
  value       = join("\n", google_redis_instance.this.server_ca_certs[*].cert)
}
