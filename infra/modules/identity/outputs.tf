output "emails" {
  description = "E-mail of each role's account."
  value       = { for role, account in google_service_account.roles : role => account.email }
}

output "worker" {
  description = "Resource name of the worker's account."
  value       = google_service_account.roles["worker"].name
}

output "prometheus" {
  description = "E-mail of Prometheus' account."
  value       = google_service_account.prometheus.email
}

output "nodes" {
  value = google_service_account.nodes.email
}

output "bucket_members" {
  description = "For the module bucket."
  value = { for role, account in google_service_account.roles :
  role => { role = google_project_iam_custom_role.objects[role].id, member = account.member } }
}
