# Names and readers only. A person or Jenkins adds the values (`gcloud secrets versions add`), which so are in no state;
# but for those that Terraform itself learns from Google, like the store's address.

resource "google_secret_manager_secret" "this" {
  for_each = var.secrets

  secret_id = "${var.name}-${each.key}"
  replication {
    auto {}
  }
}

resource "google_secret_manager_secret_version" "known" {
  for_each = var.known

  secret      = google_secret_manager_secret.this[each.key].id
  secret_data = var.values[each.key]
}

locals {
  readers = merge([for secret, members in var.secrets : { for i, member in members : "${secret}-${i}" => { secret = secret, member = member } }]...)
}

resource "google_secret_manager_secret_iam_member" "readers" {
  for_each = local.readers

  secret_id = google_secret_manager_secret.this[each.value.secret].id
  role      = "roles/secretmanager.secretAccessor"
  member    = each.value.member
}
