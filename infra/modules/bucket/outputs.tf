output "url" {
  description = "STORAGE_URL."
  value       = "gs://${google_storage_bucket.this.name}"
}

output "name" {
  value = google_storage_bucket.this.name
}
