# Its certificate names the address as a common name alone, by what others report, which no client takes for a name. That it
# is this instance's is known by its authority, which Google makes for it alone.
output "url" {
  description = "REDIS_URL."
  value       = "rediss://:${google_redis_instance.this.auth_string}@${google_redis_instance.this.host}:${google_redis_instance.this.port}/0?ssl_check_hostname=false"
  sensitive   = true
}

output "ca" {
  description = "CA_FILE's content for this store, PEM."
  value       = join("\n", google_redis_instance.this.server_ca_certs[*].cert)
}
