# One account a role, each with what app/gcs.py does in that role and nothing else.

locals {
  # Without `list`, a missing object is answered 403 and not 404.
  permissions = {
    web     = ["storage.objects.create", "storage.objects.delete", "storage.objects.get", "storage.objects.list"]
    courier = ["storage.objects.delete", "storage.objects.get", "storage.objects.list"]
    worker  = ["storage.objects.create", "storage.objects.get", "storage.objects.list"]
  }
  # In the cluster; workers on machines of their own run as the account directly.
  in_cluster = toset(["web", "courier", "worker"])
  signing    = toset(["web", "courier"])
  # What a machine writes about itself.
  telling = ["roles/logging.logWriter", "roles/monitoring.metricWriter"]
}

resource "google_service_account" "roles" {
  for_each = local.permissions

  account_id   = "${var.name}-${each.key}"
  display_name = "Darkroom ${each.key}"
}

resource "google_service_account" "nodes" {
  account_id   = "${var.name}-nodes"
  display_name = "Darkroom's GKE nodes"
}

resource "google_project_iam_custom_role" "objects" {
  for_each = local.permissions

  role_id     = replace("${var.name}_${each.key}_objects", "-", "_")
  title       = "Darkroom ${each.key}: its objects"
  permissions = each.value
}

resource "google_service_account_iam_member" "workload_identity" {
  for_each = local.in_cluster

  service_account_id = google_service_account.roles[each.key].name
  role               = "roles/iam.workloadIdentityUser"
  member             = "serviceAccount:${var.workload_pool}[${var.namespace}/darkroom-${each.key}]"
}

# Who writes task documents signs the URLs in them, as itself and as nobody else: the courier's go to webhooks.
resource "google_service_account_iam_member" "signs" {
  for_each = local.signing

  service_account_id = google_service_account.roles[each.key].name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = google_service_account.roles[each.key].member
}

# Prometheus asks which GPU machines there are.
resource "google_service_account" "prometheus" {
  account_id   = "${var.name}-prometheus"
  display_name = "Darkroom's Prometheus"
}

resource "google_project_iam_custom_role" "finds_machines" {
  role_id     = replace("${var.name}_prometheus_machines", "-", "_")
  title       = "Darkroom: sees which machines there are"
  permissions = ["compute.instances.list"]
}

resource "google_project_iam_member" "finds_machines" {
  project = var.project
  role    = google_project_iam_custom_role.finds_machines.id
  member  = google_service_account.prometheus.member
}

resource "google_service_account_iam_member" "prometheus" {
  service_account_id = google_service_account.prometheus.name
  role               = "roles/iam.workloadIdentityUser"
  member             = "serviceAccount:${var.workload_pool}[observability/prometheus]"
}

resource "google_project_iam_member" "nodes" {
  for_each = toset(concat(local.telling, ["roles/monitoring.viewer", "roles/stackdriver.resourceMetadata.writer"]))

  project = var.project
  role    = each.key
  member  = google_service_account.nodes.member
}

resource "google_project_iam_member" "worker" {
  for_each = toset(local.telling)

  project = var.project
  role    = each.key
  member  = google_service_account.roles["worker"].member
}
