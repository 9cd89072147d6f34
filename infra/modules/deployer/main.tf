# Whoever deploys, Jenkins mostly: what infra/ci/deploy-web and deploy-worker ask of Google, and nothing else.

locals {
  # `gcloud compute ssh` looks a machine up, its project, and the keys it tells of itself.
  permissions = [
    "compute.instanceGroupManagers.get", "compute.instanceGroupManagers.list", "compute.instanceGroupManagers.update",
    "compute.instances.get", "compute.instances.getGuestAttributes", "compute.instances.list",
    "compute.projects.get", "compute.regionOperations.get",
  ]
  # Kubernetes' objects; root on the machines by OS Login, through the proxy.
  roles = ["roles/container.developer", "roles/compute.osAdminLogin", "roles/iap.tunnelResourceAccessor"]
}

resource "google_project_iam_custom_role" "deploys" {
  role_id     = replace("${var.name}_deploys", "-", "_")
  title       = "Darkroom: deploys to the group of workers"
  permissions = local.permissions
}

resource "google_project_iam_member" "deploys" {
  for_each = merge({ own = google_project_iam_custom_role.deploys.id }, { for role in local.roles : role => role })

  project = var.project
  role    = each.value
  member  = var.member
}

# OS Login lets nobody onto a machine who may not be its account.
resource "google_service_account_iam_member" "is_on_the_machine" {
  service_account_id = var.worker_account
  role               = "roles/iam.serviceAccountUser"
  member             = var.member
}
