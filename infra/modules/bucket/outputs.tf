output "url" {
  description = "STORAGE_URL."
  value       = "gs://${google_storage_bucket.this.name}"
}
